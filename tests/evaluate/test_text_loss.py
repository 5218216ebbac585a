"""Loss over documents against a plain sum over them, standard errors, other text, the program."""

import copy
import dataclasses
import gzip
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import base
from configs.errors import UserError
from data_pipeline.packing import permutation
from data_pipeline.token_store import TOKENIZER
from gptjax.checkpoint import Checkpoints, RunProgress, storage
from gptjax.common.workdir import save_config
from gptjax.evaluate import __main__
from gptjax.evaluate.text_loss import Texts, evaluate_documents, read_texts, validation_documents
from gptjax.inference.load import LoadedModel, load_run
from gptjax.metrics.aggregate import ratio
from gptjax.model import gpt
from gptjax.model.config import GPTConfig
from gptjax.step.sharding import make_mesh
from gptjax.step.train_step import StepFunctions
from gptjax.train.validation import Validation

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(debug_config, store):
    model_config = GPTConfig.from_config(debug_config, store.tokenizer.vocab_size)
    params = gpt.init(model_config, jax.random.key(0))
    params = jax.tree.map(lambda p: p * 5 if p.std() > 0 else p, params)
    return LoadedModel(debug_config, model_config, params, store.tokenizer, 7)


class Few:
    """The first documents of a split."""

    def __init__(self, split, n):
        self.n_docs = n
        self.doc_lengths = split.doc_lengths[:n]
        self.n_tokens = int(self.doc_lengths.sum())
        self.read = split.read


# --- standard errors ---


def test_ratio_of_equal_units_is_a_mean_with_its_standard_error():
    x = [3.0, 5.0, 4.0, 8.0]
    mean, stderr = ratio(x, [1.0] * 4)
    assert mean == 5.0
    assert stderr == pytest.approx(np.std(x, ddof=1) / np.sqrt(4))
    assert ratio(x, [2.0] * 4) == (2.5, pytest.approx(stderr / 2))
    assert ratio([3.0], [2.0]) == (1.5, None)


def test_ratio_of_exact_proportions_has_no_error():
    assert ratio([2.0, 4.0, 10.0], [1.0, 2.0, 5.0]) == (2.0, 0.0)


def test_ratio_standard_error_is_the_spread_of_repeated_samples():
    """Documents of very different lengths, drawn 4,000 times: the formula gives their spread."""
    rng = np.random.default_rng(0)
    ratios, stderrs = [], []
    for _ in range(4000):
        y = rng.lognormal(3, 1, 200)
        x = y * (2 + 0.3 * rng.standard_normal(200)) + rng.standard_normal(200)
        value, stderr = ratio(x, y)
        ratios.append(value)
        stderrs.append(stderr)
    assert np.mean(stderrs) == pytest.approx(np.std(ratios), rel=0.05)


# --- loss ---


def naive(run, documents):
    """(nats, targets, bytes) of each document: the line is laid end to end, and cut, by hand."""
    order = permutation(documents.n_docs, 0, 0)
    line = np.concatenate([documents.read(d, 0, documents.doc_lengths[d]) for d in order])
    owners = np.repeat(order, documents.doc_lengths[order])
    targets = np.append(line[1:], run.tokenizer.bos_id).astype(int)
    owners = np.append(owners[1:], owners[-1])
    nats = np.zeros(documents.n_docs)
    forward = jax.jit(
        lambda params, x: gpt.logits(
            run.model_config, params, gpt.hidden_states(run.model_config, params, x)
        )
    )
    block = run.model_config.block_size
    for start in range(0, line.size, block):
        inputs = np.zeros((1, block), np.int32)
        n = min(block, line.size - start)
        inputs[0, :n] = line[start : start + n]
        logits = np.asarray(forward(run.params, inputs)[0], np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        for i in range(n):
            nats[owners[start + i]] -= log_probs[i, targets[start + i]]
    n_targets, n_bytes = np.zeros(documents.n_docs), np.zeros(documents.n_docs)
    np.add.at(n_targets, owners, 1)
    np.add.at(n_bytes, owners, run.tokenizer.token_bytes[targets])
    return nats, n_targets, n_bytes


def test_loss_is_that_of_a_plain_sum_with_errors_over_documents(run, store):
    documents = Few(store.split("val"), 4)
    nats, n_targets, n_bytes = naive(run, documents)
    result = evaluate_documents(run, documents)
    loss = nats.sum() / n_targets.sum()
    assert result["loss"] == pytest.approx(loss, rel=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / n_bytes.sum())
    spread = np.sqrt(4 / 3 * ((nats - loss * n_targets) ** 2).sum()) / n_targets.sum()
    assert result["loss_stderr"] == pytest.approx(spread, rel=1e-4)
    bits = nats / math.log(2)
    rest = bits - bits.sum() / n_bytes.sum() * n_bytes
    spread = np.sqrt(4 / 3 * (rest**2).sum()) / n_bytes.sum()
    assert result["bits_per_byte_stderr"] == pytest.approx(spread, rel=1e-4)


def test_every_token_and_byte_of_the_split_counts_once(run, store):
    split = store.split("val")
    result = evaluate_documents(run, split)
    assert result["n_tokens"] == split.n_tokens
    assert result["n_bytes"] == split.n_bytes
    assert result["n_documents"] == split.n_docs


@pytest.mark.parametrize("document_mask", [False, True])
def test_the_whole_split_is_what_training_sees_of_it(run, store, document_mask):
    """The evaluation during training has its own step, batches and sums."""
    config = copy.deepcopy(run.config)
    config.data.document_mask = document_mask
    config.eval.eval_iters = 10**6
    steps = StepFunctions(config, run.model_config, store.tokenizer.token_bytes, make_mesh(1))
    expected = Validation(config, store, steps).run(run.params)
    result = evaluate_documents(run._replace(config=config), store.split("val"))
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-5), name


def test_a_uniform_model_has_a_closed_form(run, store):
    zero = run._replace(params=jax.tree.map(np.zeros_like, run.params))
    split = store.split("val")
    result = evaluate_documents(zero, split)
    vocab_size = run.model_config.vocab_size
    assert result["loss"] == pytest.approx(math.log(vocab_size), rel=1e-6)
    assert result["loss_stderr"] == pytest.approx(0, abs=1e-6)  # each token costs the same
    expected = split.n_tokens * math.log2(vocab_size) / split.n_bytes
    assert result["bits_per_byte"] == pytest.approx(expected, rel=1e-6)
    one = evaluate_documents(zero, Few(split, 1))
    assert one["loss_stderr"] is None and one["n_documents"] == 1


# --- other text ---


def write(path, texts, row_group_size=3, **columns):
    table = pa.table({"text": texts, "id": [str(i) for i in range(len(texts))], **columns})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def test_text_of_a_file_is_read_whole(tmp_path, store):
    texts = ["One.", "Two\n\nlines, \u2581 and 漢字", None, "", "Four " * 50]
    documents = Texts(read_texts(write(tmp_path / "a.parquet", texts)), store.tokenizer)
    read = [documents.read(d, 0, documents.doc_lengths[d]) for d in range(documents.n_docs)]
    assert [ids[0] for ids in read] == [store.tokenizer.bos_id] * 3
    assert [store.tokenizer.decode(ids) for ids in read] == [texts[0], texts[1], texts[4]]
    assert documents.n_tokens == sum(map(len, read))


def test_the_same_documents_from_a_file_have_the_same_loss(tmp_path, run, store):
    split = store.split("val")
    texts = [
        store.tokenizer.decode(split.read(d, 0, split.doc_lengths[d])) for d in range(split.n_docs)
    ]
    texts = Texts(read_texts(write(tmp_path / "val.parquet", texts)), store.tokenizer)
    assert evaluate_documents(run, texts) == evaluate_documents(run, split)


def test_a_limit_draws_documents_from_all_over_the_file(tmp_path, store):
    texts = [f"document {i}" for i in range(40)]
    path = write(tmp_path / "a.parquet", texts)
    some, again = (Texts(read_texts(path, 8), store.tokenizer) for _ in range(2))
    read = [store.tokenizer.decode(some.read(d, 0, some.doc_lengths[d])) for d in range(8)]
    assert some.n_docs == 8 and len(set(read)) == 8 and set(read) <= set(texts)
    assert read != texts[:8] and read == sorted(read, key=texts.index)
    assert np.array_equal(some.doc_lengths, again.doc_lengths)


def test_other_kinds_of_sources_give_the_same_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what a look through a file finds is kept in data/
    texts = [f"document {i}\n" for i in range(40)]
    (tmp_path / "texts").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "texts" / f"{i:02d}.txt").write_text(text)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    path = write(tmp_path / "a.parquet", texts)
    for limit in (None, 8):
        expected = [bytes(text) for text in read_texts(path, limit)]
        for source in ("texts", "a.jsonl.gz", "texts/*.txt"):
            assert list(read_texts(source, limit)) == expected
    assert len(expected) == 8


def test_files_that_hold_no_text_are_refused(tmp_path, store):
    with pytest.raises(UserError, match="there is no file"):
        list(read_texts(tmp_path / "none.parquet"))
    with pytest.raises(UserError, match="holds no text"):
        list(read_texts(write(tmp_path / "empty.parquet", [None, ""])))
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="'text'"):
        list(read_texts(tmp_path / "other.parquet"))


# --- the program ---


@pytest.fixture(scope="module")
def workdir(run, store, tmp_path_factory):
    """A workdir with the checkpoint of a model that has not been trained."""
    folder = tmp_path_factory.mktemp("runs") / "untrained"
    config = copy.deepcopy(run.config)
    config.workdir = str(folder)
    save_config(config, folder)
    (folder / TOKENIZER).write_bytes((store.path / TOKENIZER).read_bytes())
    steps = StepFunctions(config, run.model_config, store.tokenizer.token_bytes, make_mesh(1))
    checkpoints = Checkpoints(folder, config, store)
    checkpoints.save(steps.init_state(), RunProgress(), val_loss=6.0)
    checkpoints.close()
    return folder


def program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "gptjax.evaluate", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_program_prints_and_saves_results(workdir, store, tmp_path):
    lines = [{"good": f"It is {i}.", "bad": f"It are {i}.", "uid": "be"} for i in range(9)]
    (tmp_path / "blimp.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = write(tmp_path / "a.parquet", [f"Some text, number {i}." for i in range(9)])
    arguments = (f"--text={text}", f"--benchmarks={tmp_path}", "--limit=5")
    result = program(f"--workdir={workdir}", f"--store={store.path}", *arguments)
    assert result.returncode == 0, result.stderr
    loaded = load_run(workdir)
    saved = json.loads((workdir / "eval" / "0.json").read_text())
    assert saved["val"] == evaluate_documents(loaded, store.split("val"))
    assert saved["text"][str(text)]["n_documents"] == 5
    assert saved["benchmarks"]["blimp/be"]["n"] == 5
    assert f"{saved['val']['loss']:.4f} ± {saved['val']['loss_stderr']:.4f}" in result.stdout
    assert "blimp acc" in result.stdout and "GPT-2 124M" in result.stdout

    again = program(f"--workdir={workdir}", "--noval", f"--benchmarks={tmp_path}")
    assert again.returncode == 0, again.stderr
    renewed = json.loads((workdir / "eval" / "0.json").read_text())
    assert renewed["benchmarks"]["blimp"]["n"] == 9  # evaluated again
    assert (renewed["val"], renewed["text"]) == (saved["val"], saved["text"])


def test_the_program_reports_mistakes_before_work(workdir, tmp_path):
    for arguments, words in (
        ((f"--workdir={tmp_path}",), "no config.json"),
        ((f"--workdir={workdir}", "--benchmarks=none"), "no file or folder none"),
    ):
        result = program(*arguments)
        assert result.returncode == 1 and words in result.stderr
        assert "Traceback" not in result.stderr


def test_the_split_is_found_by_the_content_that_the_checkpoint_names(workdir, store, monkeypatch):
    """No path of config.json is used: it can be of another machine."""
    run = load_run(workdir)
    with pytest.raises(UserError, match=r"(?s)no complete token store in data/stores.*--noval"):
        validation_documents(run, workdir, None)
    default = base.get_config()
    default.data.cache_dir = str(store.path.parent)
    monkeypatch.setattr(base, "get_config", lambda: default)
    found = validation_documents(run, workdir, None)[""]
    assert found.doc_lengths.tolist() == store.split("val").doc_lengths.tolist()
    meta = {"store": {**store.identity, "content": ["0" * 64]}}
    monkeypatch.setattr(storage, "read_meta", lambda _: meta)
    with pytest.raises(UserError, match="no complete token store"):
        validation_documents(run, workdir, None)
    meta = {"store": {"a": {**store.identity, "hash": store.hash}}, "mixture": [[0, [1]]]}
    monkeypatch.setattr(storage, "read_meta", lambda _: meta)
    (of_a_mixture,) = validation_documents(run, workdir, None).items()
    assert of_a_mixture[0] == "a" and of_a_mixture[1].n_tokens == found.n_tokens
    meta["store"]["b"] = {**meta["store"]["a"], "hash": "another"}
    with pytest.raises(UserError, match="content of the run's for b"):
        validation_documents(run, workdir, None)


def test_a_store_of_another_tokenizer_and_a_damaged_one_are_refused(run, workdir, store, tmp_path):
    folder = Path(shutil.copytree(store.path, tmp_path / "store"))
    validation_documents(run, workdir, folder)
    path = folder / "00000-val.tokens"
    path.write_bytes(bytes(2) + path.read_bytes()[2:])
    with pytest.raises(UserError, match=r"(?s)val\.tokens: the contents have changed.*--noval"):
        validation_documents(run, workdir, folder)
    other = dataclasses.make_dataclass("Other", ["hash"])("0")
    with pytest.raises(UserError, match=r"(?s)another tokenizer.*--noval"):
        validation_documents(run._replace(tokenizer=other), workdir, store.path)


def test_a_damaged_results_file_is_reported(tmp_path):
    (tmp_path / "0.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        __main__.save(tmp_path / "0.json", {"step": 0})
    assert (tmp_path / "0.json").read_text() == "{"
