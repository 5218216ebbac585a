"""Scores against a forward pass in float64, and every layout, request and metric by hand."""

import functools
import gzip
import importlib
import json
import math
import sys
import tracemalloc

import jax
import numpy as np
import pytest

from configs.errors import UserError
from data_pipeline import progress
from gptjax.evaluate import benchmarks, published
from gptjax.evaluate.benchmarks import Outcome, Suite, find_files, problems, read_items, summarise
from gptjax.evaluate.tasks import TASKS, Item
from gptjax.inference import scoring
from gptjax.inference.scoring import Score, Scorer, encode_request
from gptjax.model import gpt
from gptjax.model.config import GPTConfig

T = 32  # block_size of the debug configuration


@pytest.fixture(scope="module")
def tokenizer(store):
    return store.tokenizer


@pytest.fixture(scope="module")
def model_config(debug_config, tokenizer):
    return GPTConfig.from_config(debug_config, tokenizer.vocab_size)


@pytest.fixture(scope="module")
def params(model_config):
    """Initial weights, scaled: else all tokens are about as likely as each other."""
    initial = gpt.init(model_config, jax.random.key(0))
    return jax.tree.map(lambda p: p * 10 if p.std() > 0 else p, initial)


@functools.partial(jax.jit, static_argnames="model_config")
def all_logits(params, tokens_1T, *, model_config):
    return gpt.logits(model_config, params, gpt.hidden_states(model_config, params, tokens_1T))


def naive_score(model_config, params, context, continuation):
    """One request without padding to a bucket or batching, softmax in float64 NumPy."""
    tokens = (context + continuation)[-(model_config.block_size + 1) :]
    inputs = np.zeros((1, model_config.block_size), np.int32)
    inputs[0, : len(tokens) - 1] = tokens[:-1]
    logits = np.asarray(all_logits(params, inputs, model_config=model_config)[0], np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    total, greedy = 0.0, True
    for i in range(len(continuation)):
        position = len(tokens) - 1 - len(continuation) + i
        total += log_probs[position, continuation[i]]
        greedy &= logits[position].argmax() == continuation[i]
    return total, greedy


def random_requests(model_config, n, seed=0):
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(n):
        a, b = rng.integers(1, 2 * T), rng.integers(1, T + 1)
        ids = rng.integers(2, model_config.vocab_size, a + b).tolist()
        requests.append((ids[:a], ids[a:]))
    return requests


# --- scores ---


def test_scores_are_those_of_a_forward_pass(model_config, params):
    requests = random_requests(model_config, 60)
    assert any(len(c) + len(e) > T + 1 for c, e in requests)  # some lose the start of their context
    for (context, continuation), score in zip(
        requests, Scorer(model_config, params).score(requests), strict=True
    ):
        expected, greedy = naive_score(model_config, params, context, continuation)
        assert score.log_likelihood == pytest.approx(expected, rel=2e-6)
        assert score.is_greedy == greedy


def test_greedy_continuations_are_recognised(model_config, params):
    context = [1, 5, 9]
    text = list(context)
    for _ in range(4):
        inputs = np.zeros((1, T), np.int32)
        inputs[0, : len(text)] = text
        text.append(
            int(all_logits(params, inputs, model_config=model_config)[0, len(text) - 1].argmax())
        )
    greedy = text[3:]
    wrong_last = [*greedy[:-1], (greedy[-1] + 1) % model_config.vocab_size]
    wrong_first = [(greedy[0] + 1) % model_config.vocab_size, *greedy[1:]]
    requests = [(context, e) for e in (greedy, wrong_last, wrong_first, greedy[:1])]
    scores = Scorer(model_config, params).score(requests)
    assert [score.is_greedy for score in scores] == [True, False, False, True]


def test_a_continuation_longer_than_the_model_sees_is_scored_whole(model_config, params):
    rng = np.random.default_rng(1)
    context, continuation = (
        rng.integers(2, model_config.vocab_size, n).tolist() for n in (5, 2 * T + 7)
    )
    expected = 0.0
    for start in range(0, len(continuation), T // 2):
        part = continuation[start : start + T // 2]
        expected += naive_score(model_config, params, context + continuation[:start], part)[0]
    (score,) = Scorer(model_config, params).score([(context, continuation)])
    assert score.log_likelihood == pytest.approx(expected, rel=2e-6)


def test_scores_do_not_depend_on_order_or_batch(model_config, params):
    requests = random_requests(model_config, 40, seed=2)
    scorer = Scorer(model_config, params)
    order = np.random.default_rng(3).permutation(len(requests))
    together = scorer.score(requests)
    shuffled = scorer.score([requests[i] for i in order])
    for i, score in zip(order, shuffled, strict=True):
        assert score.log_likelihood == pytest.approx(together[i].log_likelihood, rel=1e-6)
        assert score.is_greedy == together[i].is_greedy
    assert scorer.score([]) == []


def test_any_lengths_compile_five_times(model_config, params):
    scoring.token_scores.clear_cache()
    scorer = Scorer(model_config, params)
    assert scorer.lengths == [2, 4, 8, 16, 32]
    requests = [([1] * a, [2] * b) for a in range(1, 2 * T, 3) for b in (1, 2, 7, T, 3 * T)]
    scorer.score(requests)
    assert scoring.token_scores._cache_size() == 5
    Scorer(model_config, params).score(requests[:9])  # as a callback during training does
    assert scoring.token_scores._cache_size() == 5


def test_only_wanted_positions_reach_the_head(model_config, params, monkeypatch):
    """The number of chunks follows the mask: with chunks of 4, masks of 0 to 9 targets agree."""
    monkeypatch.setattr(scoring, "_CHUNK", 4)
    scoring.token_scores.clear_cache()
    rng = np.random.default_rng(4)
    inputs, targets = (
        rng.integers(2, model_config.vocab_size, (2, 7)).astype(np.int32) for _ in range(2)
    )
    logits = np.asarray(
        gpt.logits(model_config, params, gpt.hidden_states(model_config, params, inputs)),
        np.float64,
    )
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = np.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    for n in range(10):
        mask = np.zeros(14, bool)
        mask[rng.permutation(14)[:n]] = True
        mask = mask.reshape(2, 7)
        batch = {"inputs": inputs, "targets": targets, "loss_mask": mask}
        scores, _ = scoring.token_scores(params, batch, model_config=model_config)
        np.testing.assert_allclose(scores, np.where(mask, expected, 0), rtol=2e-6)
    scoring.token_scores.clear_cache()  # these were compiled with a chunk of 4


def test_empty_requests_are_refused(model_config, params):
    for request in (([], [5]), ([1], [])):
        with pytest.raises(ValueError, match="request 1"):
            Scorer(model_config, params).score([([1], [5]), request])


@pytest.mark.parametrize(
    "context, continuation",
    [
        ("The cat", " sat"),
        ("The cat ", "sat"),
        ("Q: a\nA:  \n ", " b"),
        ("", " A dog."),
        (" ", "x"),
    ],
)
def test_white_space_at_the_end_of_a_context_belongs_to_the_continuation(
    tokenizer, context, continuation
):
    context_ids, ids = encode_request(tokenizer, context, continuation)
    stripped = context.rstrip()
    assert context_ids == [tokenizer.bos_id, *tokenizer.encode(stripped)]
    assert [*context_ids[1:], *ids] == tokenizer.encode(context + continuation).tolist()
    assert tokenizer.decode(ids) == context[len(stripped) :] + continuation


# --- layouts ---

CHOICES = {"text": ["sun", "a moon", "rain"], "label": ["A", "B", "C"]}
AI2_CHOICES = [{"text": "sun", "label": "1"}, {"text": "a moon", "label": "2"}]
LAYOUTS = [
    (
        "hellaswag",
        {
            "activity_label": "Baking",
            "ctx_a": "[header] How to bake [title] Heat  it.",
            "ctx_b": "the COOK",
            "endings": ["stirs [substeps] the  pot.", " sings. "],
            "label": "1",
        },
        Item(
            (
                ("Baking: How to bake. Heat it. The cook", " stirs the pot."),
                ("Baking: How to bake. Heat it. The cook", " sings."),
            ),
            1,
            (14, 6),
        ),
    ),
    (
        "lambada",
        {"text": 'He said\n\n"I know it is\nWill Smith'},
        Item((('He said\n\n"I know it is\nWill', " Smith"),), 0),
    ),
    (
        "lambada",
        {"context": "I do not care", "target": "much"},
        Item((("I do not care", " much"),), 0),
    ),
    (
        "piqa",
        {"goal": "Open a jar", "sol1": "Twist it ", "sol2": "Eat", "label": 0},
        Item(
            (
                ("Question: Open a jar\nAnswer:", " Twist it "),
                ("Question: Open a jar\nAnswer:", " Eat"),
            ),
            0,
            (9, 3),
        ),
    ),
    (
        "arc_easy",
        {"question": "What is wet?", "choices": CHOICES, "answerKey": "C"},
        Item(
            tuple(
                ("Question: What is wet?\nAnswer:", f" {text}")
                for text in ("sun", "a moon", "rain")
            ),
            2,
            (3, 6, 4),
        ),
    ),
    (
        "arc_challenge",
        {"question": {"stem": "What is hot?", "choices": AI2_CHOICES}, "answerKey": "1"},
        Item(
            tuple(("Question: What is hot?\nAnswer:", f" {text}") for text in ("sun", "a moon")),
            0,
            (3, 6),
        ),
    ),
    (
        "openbookqa",
        {"question_stem": "It shines:", "choices": CHOICES, "answerKey": " A"},
        Item(tuple(("It shines:", f" {text}") for text in ("sun", "a moon", "rain")), 0, (3, 6, 4)),
    ),
    (
        "openbookqa",
        {"question": {"stem": "At night", "choices": AI2_CHOICES}, "answerKey": "2"},
        Item(tuple(("At night", f" {text}") for text in ("sun", "a moon")), 1, (3, 6)),
    ),
    (
        "winogrande",
        {"sentence": "Al fed Bo as _ was ill.", "option1": "Al", "option2": "Bo", "answer": "2"},
        Item((("Al fed Bo as Al", " was ill."), ("Al fed Bo as Bo", " was ill.")), 1),
    ),
    (
        "blimp",
        {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps.", "UID": "agreement"},
        Item((("", " Cats sleep."), ("", " Cats sleeps.")), 0, group="agreement"),
    ),
    (
        "blimp",
        {"good": "I am.", "bad": "I is.", "uid": "be"},
        Item((("", " I am."), ("", " I is.")), 0, group="be"),
    ),
]


@pytest.mark.parametrize("name, record, expected", LAYOUTS)
def test_published_layouts(name, record, expected):
    assert TASKS[name].parse(record) == expected


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def lambada(n):
    return [{"text": f"number {i} is\u2028followed by {i + 1}"} for i in range(n)]


def test_plain_and_compressed_files_are_the_same(tmp_path):
    plain, packed = (
        write(tmp_path / f"lambada.{end}", lambada(3)) for end in ("jsonl", "jsonl.gz")
    )
    items = read_items(TASKS["lambada"], [plain])
    assert items == read_items(TASKS["lambada"], [packed])
    assert [item.requests[0][1] for item in items] == [" 1", " 2", " 3"]
    assert "\u2028" in items[0].requests[0][0]  # no end of a line in JSON


def test_a_limit_draws_the_same_items_each_time_of_each_paradigm(tmp_path):
    path = write(tmp_path / "lambada.jsonl", lambada(100))
    task = TASKS["lambada"]
    items = read_items(task, [path])
    some = read_items(task, [path], 10)
    assert some == read_items(task, [path], 10)
    assert len(some) == 10 and some != items[:10]
    assert [item for item in items if item in some] == some  # in the order of the file
    assert read_items(task, [path], 1000) == items
    pairs = [{"good": f"a {i}", "bad": f"b {i}", "uid": f"u{i % 2}"} for i in range(20)]
    drawn = read_items(TASKS["blimp"], [write(tmp_path / "blimp.jsonl", pairs)], 3)
    assert [item.group for item in drawn] == ["u0"] * 3 + ["u1"] * 3


@pytest.mark.parametrize(
    "content, words",
    [
        (b'{"text": "a b"}\n{"text": "a', r"line 2: .*Unterminated"),
        (b'{"text": "word"}\n', "line 1: .*no last word"),
        (b'\n{"context": "a"}\n', "line 2: .*no 'target'.*text, or context and target"),
        (b"[1]\n", "line 1"),
        (b"\xff\n", "line 1: .*utf-8"),
        (b'{"text": "a \\ud800"}\n', "line 1: .*surrogates"),
        (b'{"text": ' + b"[" * 100_000, "line 1: .*nests too deeply"),
        (b'{"context": null, "target": "a"}\n', "line 1: .*context is no text"),
        (b"\n", "holds no items"),
    ],
)
def test_bad_lines_are_reported(tmp_path, content, words):
    path = tmp_path / "lambada.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_items(TASKS["lambada"], [path])


@pytest.mark.parametrize("label", [1e400, math.nan, "9" * 5000, None, [1]])
def test_labels_that_are_no_number_of_a_choice_are_reported(tmp_path, label):
    path = write(tmp_path / "piqa.jsonl", [dict(LAYOUTS[3][1], label=label)])
    with pytest.raises(UserError, match="line 1: not an item of piqa"):
        read_items(TASKS["piqa"], [path])


def test_a_small_file_cannot_become_a_large_one(tmp_path, monkeypatch):
    path = tmp_path / "lambada.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "' + b"a " * (40 << 20) + b'b"}'))
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(UserError, match="over 67,108,864 bytes of text"):
        read_items(TASKS["lambada"], [path])
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    monkeypatch.setattr(benchmarks, "_MAX_ITEMS", 3)
    with pytest.raises(UserError, match="over 3 items"):
        read_items(TASKS["lambada"], [write(tmp_path / "lambada.jsonl", lambada(4))])


def test_damaged_and_unlabelled_files_are_refused(tmp_path):
    path = write(tmp_path / "lambada.jsonl.gz", lambada(50))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="cannot be read"):
        read_items(TASKS["lambada"], [path])
    record = dict(LAYOUTS[0][1], label="")
    path = write(tmp_path / "hellaswag_test.jsonl", [record])
    with pytest.raises(UserError, match="test split has no labels"):
        read_items(TASKS["hellaswag"], [path])
    record = dict(LAYOUTS[3][1], label=-1)
    with pytest.raises(UserError, match="number -1 of 2"):
        read_items(TASKS["piqa"], [write(tmp_path / "piqa.jsonl", [record])])


def test_files_are_recognised_by_their_names(tmp_path):
    names = {
        "hellaswag": ["hellaswag_val.jsonl"],
        "lambada": ["lambada_openai_test.jsonl.gz"],
        "piqa": ["physicaliqa/piqa/valid.jsonl"],
        "arc_easy": ["ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Dev.jsonl"],
        "arc_challenge": ["ARC-V1-Feb2018-2/ARC-Challenge/ARC-Challenge-Dev.jsonl"],
        "winogrande": ["winogrande_1.1/dev.jsonl"],
        "openbookqa": ["OpenBookQA-V1-Sep2018/Data/Main/dev.jsonl"],
        "blimp": ["blimp/data/adjunct_island.jsonl", "blimp/data/causative.jsonl"],
    }
    paths = {n: [tmp_path / "sets" / p for p in ps] for n, ps in names.items()}
    for path in (p for ps in paths.values() for p in ps):
        write(path, [{}])
    write(tmp_path / "sets" / "other.jsonl", [{}])
    (tmp_path / "sets" / "piqa.txt").write_text("no JSON lines")
    assert find_files([tmp_path / "sets"]) == paths
    assert find_files([]) == {}
    some = [paths["winogrande"][0], tmp_path / "sets" / "blimp"]
    assert find_files(some) == {name: paths[name] for name in ("winogrande", "blimp")}


def test_unknown_and_ambiguous_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no file or folder"):
        find_files([tmp_path / "none"])
    other = write(tmp_path / "sets" / "other.jsonl", [{}])
    for path in (other, other.parent):
        with pytest.raises(UserError, match="hellaswag, lambada, piqa"):
            find_files([path])
    for split in ("train", "val"):
        write(tmp_path / "sets" / f"hellaswag_{split}.jsonl", [{}])
    with pytest.raises(UserError, match=r"--benchmarks: 2 files are of hellaswag.*such as"):
        find_files([other.parent])


def test_all_problems_of_files_are_listed_at_once(tmp_path):
    good = write(tmp_path / "piqa.jsonl", [{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}])
    bad = write(tmp_path / "lambada.jsonl", [{"text": "one"}])
    listed = problems([tmp_path / "none", tmp_path / "other.jsonl", good, bad])
    assert [t.split(str(tmp_path))[1].split(" ")[0].strip(".,") for t in listed] == [
        "/none",
        "/other.jsonl",
        "/lambada.jsonl",
    ]
    assert problems([good]) == []


# --- metrics ---


def outcome(log_likelihoods, gold, lengths=(), greedy=False):
    scores = tuple(Score(x, greedy) for x in log_likelihoods)
    return Outcome(Item((("", ""),) * len(scores), gold, lengths), scores)


def test_acc_takes_the_sum_and_acc_norm_the_mean_over_characters():
    outcomes = [
        outcome((-4.0, -6.0), 0, (2, 10)),  # -2 and -0.6 a character
        outcome((-4.0, -6.0), 1, (2, 10)),
        outcome((-5.0, -5.0), 0, (5, 5)),  # the first of equals
        outcome((-1.0, -2.0), 0, (1, 1)),
    ]
    assert [o.value("acc") for o in outcomes] == [1, 0, 1, 1]
    assert [o.value("acc_norm") for o in outcomes] == [0, 1, 1, 1]
    summary = summarise(outcomes, ("acc", "acc_norm"))
    assert (summary["n"], summary["chance"]) == (4, 0.5)
    assert summary["acc"] == summary["acc_norm"] == 0.75
    assert summary["acc_stderr"] == pytest.approx(np.std([1, 0, 1, 1], ddof=1) / 2)


def test_perplexity_and_its_standard_error():
    values = [-1.0, -3.0, -2.5, -0.5]
    outcomes = [outcome((x,), 0, greedy=x > -2) for x in values]
    summary = summarise(outcomes, ("acc", "perplexity"))
    assert summary["chance"] is None
    assert summary["acc"] == 0.5
    assert summary["perplexity"] == pytest.approx(math.exp(1.75))
    expected = math.exp(1.75) * np.std(values, ddof=1) / 2
    assert summary["perplexity_stderr"] == pytest.approx(expected)
    assert summarise(outcomes[:1], ("acc",))["acc_stderr"] is None  # one item says nothing


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A few items of two benchmarks."""
    folder = tmp_path_factory.mktemp("sets")
    pairs = [{"good": f"a {i}", "bad": f"b {i} c", "uid": f"u{i % 2}"} for i in range(7)]
    write(folder / "blimp.jsonl", pairs)
    write(folder / "lambada.jsonl", lambada(5))
    return find_files([folder])


def test_a_uniform_model_has_closed_forms(model_config, params, tokenizer, sets):
    """Where all logits are equal, a token costs log V, and shorter texts win."""
    zero = jax.tree.map(np.zeros_like, params)
    results = Suite(tokenizer, sets).run(Scorer(model_config, zero), progress=False)
    tokens = [len(tokenizer.encode(f" {i + 1}")) for i in range(5)]
    expected = model_config.vocab_size ** np.mean(tokens)
    assert results["lambada"]["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert results["blimp"]["acc"] == 1.0 and results["blimp"]["acc_stderr"] == 0.0


def test_blimp_is_the_mean_of_its_paradigms(model_config, params, tokenizer, sets):
    results = Suite(tokenizer, sets).run(Scorer(model_config, params), progress=False)
    assert list(results) == ["lambada", "blimp", "blimp/u0", "blimp/u1"]
    parts = [results["blimp/u0"], results["blimp/u1"]]
    assert [part["n"] for part in parts] == [4, 3]
    assert results["blimp"]["acc"] == pytest.approx(np.mean([p["acc"] for p in parts]))
    expected = np.sqrt(sum(p["acc_stderr"] ** 2 for p in parts)) / 2
    assert results["blimp"]["acc_stderr"] == pytest.approx(expected)


def test_a_suite_encodes_once_and_scores_silently(
    model_config, params, tokenizer, sets, capsys, caplog, monkeypatch
):
    suite = Suite(tokenizer, sets, limit=3)
    first = suite.run(Scorer(model_config, params), progress=False)
    monkeypatch.setattr(benchmarks, "encode_request", None)
    assert suite.run(Scorer(model_config, params), progress=False) == first
    assert first["lambada"]["n"] == 3 and first["blimp"]["n"] == 6  # 3 of each paradigm
    zero = jax.tree.map(np.zeros_like, params)
    assert suite.run(Scorer(model_config, zero), progress=False) != first
    assert capsys.readouterr() == ("", "") and not caplog.records


def test_progress_shows_rate_and_time_left(model_config, params, caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    caplog.set_level("INFO", "data_pipeline")
    n = scoring.rows_per_batch(2) + 1
    Scorer(model_config, params).score([([1], [2])] * n, "lambada")
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"lambada: {n - 1:,} of {n:,} requests, ") and "/s, " in first
    assert last.startswith(f"lambada: {n:,} of {n:,} requests, ") and last.endswith("0s left")


# --- the table ---


def test_published_figures_are_of_metrics_that_are_reported():
    known = {f"{name}/{metric}" for name, task in TASKS.items() for metric in task.metrics}
    assert published.FIGURES.keys() <= known
    for key, row in published.FIGURES.items():
        assert len(row) == len(published.SOURCES)
        for value in row:
            in_range = value is None or (value > 1 if "perplexity" in key else 0 < value < 1)
            assert in_range, key


def test_the_table_has_other_models_sources_and_paradigms(model_config, params, tokenizer, sets):
    results = Suite(tokenizer, sets).run(Scorer(model_config, params), progress=False)
    results["piqa"] = {
        "n": 1838,
        "chance": 0.5,
        **{"acc": 0.6, "acc_stderr": 0.0114, "acc_norm": 0.59, "acc_norm_stderr": None},
    }
    text = published.text_table(results, "ours")
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    header = text.splitlines()[0].split("  ")
    models = [cell.strip() for cell in header if cell.strip()]
    assert models[:3] == ["items", "chance", "ours"]
    assert models[3:] == ["GPT-2 124M", "Pythia-70M", "Pythia-160M", "OPT-125M", "GPT-Neo-125M"]
    row = lines["piqa acc"]
    assert row[2:7] == ["1,838", "50.0", "60.0", "±", "1.1"]
    assert row[7:] == ["62.9", "59.5", "62.7", "63.0", "63.1"]
    assert lines["piqa acc_norm"][5:8] == ["±", "n/a", "n/a"]  # one item's error; GPT-2's figure
    assert lines["lambada perplexity"][-5:] == ["40.06", "142.43", "38.06", "26.02", "30.27"]
    assert lines["blimp acc"][-5:] == ["n/a"] * 5
    assert "blimp/u1" in text and "github.com/EleutherAI/gpt-neo" in text


# --- the adapter, where lm-eval is missing ---


def test_a_missing_extra_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "gptjax.lm_eval_adapter", raising=False)
    with pytest.raises(UserError, match=r"pip install 'gptjax\[lmeval\]'"):
        importlib.import_module("gptjax.lm_eval_adapter")
