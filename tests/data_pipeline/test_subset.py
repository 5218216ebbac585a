"""A subset of the training split: an exact number of tokens, nested, of real documents."""

import copy
import json

import numpy as np
import pytest

from configs.errors import UserError
from configs.validate import validate
from data_pipeline.packing import PackedRows, permutation
from data_pipeline.subset import Subset, training_documents, validate_store
from gptjax.plan import planner
from gptjax.train import trainer


def line(documents):
    """All tokens of some documents, concatenated."""
    lengths = documents.doc_lengths
    return np.concatenate([documents.read(d, 0, int(n)) for d, n in enumerate(lengths)])


@pytest.mark.parametrize("n_tokens", [1, 7, 20_000])
def test_subset_is_the_beginning_of_the_shuffled_split(store, n_tokens):
    split = store.split("train")
    order = permutation(split.n_docs, 0, 0)
    naive, chosen = [], []
    while len(naive) < n_tokens:
        chosen.append(int(order[len(chosen)]))
        naive += split.read(chosen[-1], 0, int(split.doc_lengths[chosen[-1]])).tolist()
    subset = Subset(split, n_tokens)
    assert subset.n_tokens == n_tokens and subset.n_docs == len(chosen)
    assert subset.doc_lengths.sum() == n_tokens and subset.doc_lengths.min() > 0
    assert line(subset).tolist() == naive[:n_tokens]
    assert [subset.doc_id(d) for d in range(subset.n_docs)] == [split.doc_id(d) for d in chosen]
    last = subset.n_docs - 1
    with pytest.raises(IndexError):
        subset.read(last, 0, int(subset.doc_lengths[last]) + 1)
    with pytest.raises(IndexError):
        subset.read(subset.n_docs, 0, 1)


def test_subset_that_ends_with_a_document(store):
    """It has no document more than needed, and leaves the index of the split unchanged."""
    split = store.split("train")
    before = split.doc_lengths.copy()
    whole = int(split.doc_lengths[permutation(split.n_docs, 0, 0)[:3]].sum())
    assert [Subset(split, whole + i).n_docs for i in (-1, 0, 1)] == [3, 3, 4]
    assert (split.doc_lengths == before).all()


def test_all_of_it_is_the_split_itself(store):
    split = store.split("train")
    assert training_documents(store, 0) is training_documents(store, split.n_tokens) is split
    assert training_documents(store, split.n_tokens - 1).n_tokens == split.n_tokens - 1


def test_rows_of_a_pass_hold_each_token_once(store):
    subset = training_documents(store, 5_000)
    rows = PackedRows(subset, block_size=32, seed=3, bos_id=store.tokenizer.bos_id, segments=False)
    targets = [row.targets[row.loss_mask] for row in map(rows.__getitem__, range(157))]
    assert rows.rows_per_epoch == 157
    actual, expected = np.concatenate(targets), line(subset)
    assert sorted(actual.tolist()) == sorted(expected.tolist())  # each BOS is a target once, too


def test_plan_and_checks_use_the_subset(debug_config, store):
    config = copy.deepcopy(debug_config)
    config.data.max_train_tokens = 1_000
    data = planner.find_data(config)
    assert data.train_tokens == 1_000 and data.val_tokens == store.split("val").n_tokens
    config.data.max_train_tokens = config.model.block_size - 1
    with pytest.raises(UserError, match="exceeds the 31 tokens of the train split"):
        validate_store(config, store)
    config.data.max_train_tokens = -1
    with pytest.raises(UserError, match="max_train_tokens = -1 must not be negative"):
        validate(config, 1)


def test_a_run_reads_its_subset_and_validates_on_the_whole_split(debug_config, tmp_path):
    """And one that stops in the third pass resumes with the same losses."""
    config = copy.deepcopy(debug_config)
    config.data.max_train_tokens = 1_600  # 50 rows; 20 steps of 8 rows are 3.2 passes
    config.train.log_interval = 1
    config.sample.prompts = ()

    def lines(name, *ends):
        config.workdir = str(tmp_path / name)
        for config.train.max_iters in ends:
            trainer.train_and_evaluate(config)
        text = (tmp_path / name / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def results(lines):
        return [
            {k: v for k, v in line.items() if k.startswith(("train/", "val/", "data/epoch"))}
            for line in lines
        ]

    whole, parts = lines("whole", 20), lines("parts", 13, 20)
    losses = [line["train/loss"] for line in whole if "train/loss" in line]
    assert whole[-2]["data/epoch"] == 3.2 and len(losses) == 20
    at_13 = [line for line in results(parts) if line and "val/loss" not in line]
    assert at_13 == [line for line in results(whole) if line and "val/loss" not in line]
    assert results(parts)[-1] == results(whole)[-1] and "val/loss" in parts[-1]
