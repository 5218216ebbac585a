"""A subset of the training split: an exact number of tokens, nested, of real documents."""

import copy
import json
import shutil

import numpy as np
import pytest
from naive_packer import FakeSplit

from configs.errors import UserError
from configs.validate import validate
from data_pipeline import grouped_rows
from data_pipeline.grouped_rows import Group
from data_pipeline.packing import PackedRows, permutation
from data_pipeline.subset import (
    Subset,
    split_groups,
    subset,
    training_groups,
    training_rows,
    validate_store,
    validation_rows,
)
from data_pipeline.token_store import MANIFEST, TokenStore, shard_files, write_manifest
from gptjax.plan import run_data
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


def training_documents(store, max_tokens):
    """Those of a store of one group."""
    (group,) = training_groups(store, max_tokens)
    documents = group.open()
    assert documents.n_tokens == group.n_tokens
    return documents


def test_all_of_it_is_the_split_itself(store):
    split = store.split("train")
    assert training_documents(store, 0) is training_documents(store, split.n_tokens) is split
    assert training_documents(store, split.n_tokens - 1).n_tokens == split.n_tokens - 1


def test_rows_of_a_pass_hold_each_token_once(debug_config, store):
    config = copy.deepcopy(debug_config)
    config.data.max_train_tokens = 5_000
    rows = training_rows(config, store)
    targets = [row.targets[row.loss_mask] for row in map(rows.__getitem__, range(157))]
    assert rows.rows_per_epoch == 157
    actual, expected = np.concatenate(targets), line(training_documents(store, 5_000))
    assert sorted(actual.tolist()) == sorted(expected.tolist())  # each BOS is a target once, too


def test_a_store_of_one_group_keeps_its_order(debug_config, store):
    """That of `PackedRows`, whose own tests compare it with a naive packer."""
    for config in (debug_config, masked := copy.deepcopy(debug_config)):
        masked.data.document_mask = True
        rows = training_rows(config, store)
        reference = PackedRows(
            store.split("train"),
            block_size=config.model.block_size,
            seed=config.seed,
            bos_id=store.tokenizer.bos_id,
            segments=config.data.document_mask,
        )
        assert rows.rows_per_epoch == reference.rows_per_epoch
        for g in (0, 1, 2, rows.rows_per_epoch - 1, rows.rows_per_epoch, 10**7):
            for a, b in zip(rows[g], reference[g], strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.fixture
def four_groups(monkeypatch, store, tmp_path):
    """A store whose four shards are four groups: copies of the session's only shard."""
    folder = shutil.copytree(store.path, tmp_path / "store")
    manifest = json.loads((folder / MANIFEST).read_text())
    files, piece = manifest["files"], manifest["pieces"][0]
    for path in shard_files(folder, 0):
        for i in (1, 2, 3):
            copy_of = path.with_name(path.name.replace("00000", f"{i:05d}"))
            shutil.copy(path, copy_of)
            files[copy_of.name] = files[path.name]
    manifest["pieces"] = [{**piece, "source": f"{i}.parquet"} for i in range(4)]
    write_manifest(folder, manifest)
    monkeypatch.setattr(grouped_rows, "GROUP_DOCUMENTS", piece["train"]["documents"])
    return TokenStore.open(folder)


def test_groups_of_a_store_are_parts_of_its_split(debug_config, four_groups):
    split, groups = four_groups.split("train"), split_groups(four_groups, "train")
    first = 0
    for k, group in enumerate(groups):
        documents = group.open()
        assert documents.n_tokens == group.n_tokens == split.n_tokens // 4
        for d in (0, documents.n_docs - 1):
            length = int(documents.doc_lengths[d])
            assert documents.doc_id(d) == split.doc_id(first + d)
            assert documents.doc_id(d).startswith(f"{k}.parquet:")
            actual, expected = (
                s.read(i, 0, length) for s, i in ((documents, d), (split, first + d))
            )
            np.testing.assert_array_equal(actual, expected)
        first += documents.n_docs
    assert first == split.n_docs
    rows = training_rows(debug_config, four_groups)
    of_a_group = -(-groups[0].n_tokens // debug_config.model.block_size)
    assert rows.rows_per_epoch == 4 * of_a_group
    ids = [rows.document_ids([k * of_a_group])[0].partition(":")[0] for k in range(4)]
    assert sorted(ids) == [f"{k}.parquet" for k in range(4)]
    assert isinstance(validation_rows(debug_config, four_groups), PackedRows)  # it is smaller
    assert run_data.stored(debug_config, four_groups).train_tokens == split.n_tokens


def test_a_subset_of_several_groups_is_exact_and_nested():
    splits = [FakeSplit([7, 1, 12], 100 * k + 2) for k in range(4)]
    groups = [Group(split.n_tokens, lambda s=split: s) for split in splits]

    def tokens(groups):
        opened = [(group.open(), group.n_tokens) for group in groups]
        assert all(documents.n_tokens == n for documents, n in opened)
        return [
            (documents.doc_id(d), i)
            for documents, _ in opened
            for d, length in enumerate(documents.doc_lengths)
            for i in range(length)
        ]

    smaller = set()
    for n in range(1, 80):
        chosen = tokens(subset(groups, n))
        assert len(chosen) == len(set(chosen)) == n
        assert smaller < set(chosen)
        smaller = set(chosen)
    assert subset(groups, 0) == subset(groups, 80) == subset(groups, 99) == groups
    assert tokens(subset(groups, 20)) != tokens(groups[:1])  # in a random order
    assert len(subset(groups, 40)) == 2


def test_plan_and_checks_use_the_subset(debug_config, store):
    config = copy.deepcopy(debug_config)
    config.data.max_train_tokens = 1_000
    data = run_data.find(config)
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
