"""Our scores beside those of lm-eval 0.4.13, item by item: its tasks, and its own torch model.

Needs the extra `lmeval` and the files of ../shared beside the checkout; the comparison with
lm-eval's own model also the extra `clients`.
"""

import gzip
import json
import os
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # before lm-eval is imported

import jax
import numpy as np
import pytest
from gpt2_reference import from_hf
from helpers import tiny_gpt

from data_pipeline.packing import permutation
from gptjax.evaluate import benchmarks
from gptjax.evaluate.tasks import TASKS
from gptjax.inference.scoring import Scorer
from gptjax.model import gpt
from gptjax.model.config import GPTConfig

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra lmeval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from gptjax.lm_eval_adapter import GPTJax  # noqa: E402

pytestmark = pytest.mark.slow

NEEDS = "needs the extra `clients`"

SHARED = (Path(__file__).parents[2] / ".." / "shared").resolve()
N = 60  # items of each benchmark
PARADIGMS = ("adjunct_island", "npi_present_1")

# The sets of which there is no file: a few items by hand, in the layout of Hugging Face's copies.
WINOGRANDE = [
    {
        "sentence": f"The {a} did not fit in the {b} because the _ was too {size}.",
        "option1": a,
        "option2": b,
        "answer": answer,
    }
    for a, b in (("trophy", "box"), ("old piano", "van"), ("cake", "tin"))
    for size, answer in (("big", "1"), ("small", "2"))
]
OPENBOOKQA = [
    {
        "id": str(i),
        "question_stem": stem,
        "choices": {
            "text": ["the sun ", "a small lamp", "cold rain", "wind"],
            "label": list("ABCD"),
        },
        "answerKey": key,
    }
    for i, (stem, key) in enumerate(
        [("What warms the earth?", "A"), ("At night one reads by", " B"), ("Plants drink ", "C")]
    )
]
YAML = {  # stock file, splits that it reads
    "hellaswag": ("hellaswag/hellaswag.yaml", ("train", "validation")),
    "lambada": ("lambada/lambada_openai.yaml", ("test",)),
    "piqa": ("piqa/piqa.yaml", ("train", "validation")),
    "arc_easy": ("arc/arc_easy.yaml", ("train", "validation", "test")),
    "winogrande": ("winogrande/default.yaml", ("train", "validation")),
    "openbookqa": ("openbookqa/openbookqa.yaml", ("train", "validation", "test")),
    **{f"blimp/{p}": (f"blimp/{p}.yaml", ("train",)) for p in PARADIGMS},
}


def shared_lines(name):
    path = SHARED / "eval" / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def some(lines):
    return [lines[i] for i in sorted(permutation(len(lines), 1, 0)[:N])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The items as JSON lines, and a task of lm-eval for each: the stock one, on our file."""
    blimp = shared_lines("blimp")
    lambada = [
        {"text": f"{x['context']} {x['target']}"} for x in some(shared_lines("lambada_openai_test"))
    ]
    items = {
        "hellaswag": some(shared_lines("hellaswag_val")),
        "lambada": lambada,
        "piqa": some(shared_lines("piqa_val")),
        "arc_easy": some(shared_lines("arc_easy_val")),
        "winogrande": WINOGRANDE,
        "openbookqa": OPENBOOKQA,
    }
    for paradigm in PARADIGMS:
        lines = some([x for x in blimp if x["uid"] == paradigm])
        items[f"blimp/{paradigm}"] = [
            {"sentence_good": x["good"], "sentence_bad": x["bad"], "UID": x["uid"]} for x in lines
        ]
    folder = tmp_path_factory.mktemp("sets")
    stock = Path(lm_eval.__file__).parent / "tasks"
    for name, records in items.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        yaml, splits = YAML[name]
        lines = [
            f"include: {stock / yaml}",
            f"task: ours_{name.replace('/', '_')}",
            "dataset_path: json",
            "dataset_name: null",
            "dataset_kwargs:",
            "  data_files:",
            *(f"    {split}: {path}" for split in splits),
        ]
        (folder / f"{name.replace('/', '_')}.yaml").write_text("\n".join(lines) + "\n")
    return folder


def of_lm_eval(lm, folder, monkeypatch):
    """Runs lm-eval: (results, samples), by our names."""
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")  # its bootstrap forks, which JAX does not like
    monkeypatch.setenv("HF_HOME", str(folder / "cache"))
    names = {name: f"ours_{name.replace('/', '_')}" for name in YAML}
    out = lm_eval.simple_evaluate(
        lm,
        tasks=list(names.values()),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=1000,
        log_samples=True,
    )
    return (
        {name: out["results"][theirs] for name, theirs in names.items()},
        {name: out["samples"][theirs] for name, theirs in names.items()},
    )


def assert_equal(model_config, params, tokenizer, folder, theirs, *, rel):
    """Compares requests, log-likelihoods, greedy flags, metrics, means and their errors."""
    results, samples = theirs
    scorer = Scorer(model_config, params)
    files = benchmarks.find_files([folder])
    assert set(files) == {name.partition("/")[0] for name in YAML}
    ours = benchmarks.Suite(tokenizer, files).run(scorer, progress=False)
    for name in YAML:
        task = TASKS[name.partition("/")[0]]
        suite = benchmarks.Suite(tokenizer, {task.name: [folder / f"{name}.jsonl"]})
        outcomes = suite.score(task.name, scorer)
        in_order = sorted(samples[name], key=lambda sample: sample["doc_id"])
        assert len(in_order) == len(outcomes) >= 3
        for outcome, sample in zip(outcomes, in_order, strict=True):
            requests = [tuple(request) for request in sample["arguments"]]
            assert list(outcome.item.requests) == requests, name
            for score, (reply,) in zip(outcome.scores, sample["resps"], strict=True):
                assert score.log_likelihood == pytest.approx(reply[0], rel=rel), name
                assert score.is_greedy == reply[1]
            for metric in task.metrics:
                value = outcome.value(metric)
                if metric == "perplexity":
                    assert -value == pytest.approx(sample[metric], rel=rel)
                else:
                    assert value == sample[metric], (name, metric)
        for metric in task.metrics:
            mean, stderr = (results[name][f"{key},none"] for key in (metric, f"{metric}_stderr"))
            if metric == "perplexity":  # an exponential of a hundred noisy numbers, and a bootstrap
                assert np.log(ours[name][metric]) == pytest.approx(np.log(mean), rel=rel)
                continue
            assert ours[name][metric] == pytest.approx(mean, rel=1e-12)
            assert ours[name][f"{metric}_stderr"] == pytest.approx(stderr, rel=1e-9)


@pytest.fixture(scope="module")
def quick(debug_config, store):
    """A model with our tokenizer whose rows are shorter than many items."""
    config = debug_config.copy_and_resolve_references()
    config.model.block_size = 128
    model_config = GPTConfig.from_config(config, store.tokenizer.vocab_size)
    params = gpt.init(model_config, jax.random.key(0))
    return (
        model_config,
        jax.tree.map(lambda p: p * 8 if p.std() > 0 else p, params),
        store.tokenizer,
    )


def test_our_scores_are_lm_evals_item_by_item(quick, folder, monkeypatch):
    theirs = of_lm_eval(GPTJax(*quick), folder, monkeypatch)
    assert_equal(*quick, folder, theirs, rel=1e-6)


class GPT2Tokenizer:
    """GPT-2's tokenizer behind the interface of ours."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.bos_id = tokenizer.bos_token_id

    def encode(self, text):
        return np.array(self._tokenizer.encode(text, add_special_tokens=False), np.int32)


def test_our_scores_are_those_of_lm_evals_own_model(folder, monkeypatch):
    """The same weights as a GPT-2 of transformers, in lm-eval's HFLM: not a line in common."""
    torch = pytest.importorskip("torch", reason=NEEDS)
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    pytest.importorskip("accelerate", reason=NEEDS)
    from lm_eval.models.huggingface import HFLM
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing

    vocab = SHARED / "gpt2_vocab"
    if not vocab.exists():
        pytest.skip(f"{vocab} is not there")
    bpe = ByteLevelBPETokenizer(str(vocab / "encoder.json"), str(vocab / "vocab.bpe"))
    bpe.add_special_tokens(["<|endoftext|>"])
    bos = bpe.token_to_id("<|endoftext|>")
    bpe._tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    hf_tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    assert (len(hf_tokenizer), bos) == (50257, 50256)
    shape = {"vocab_size": 50257, "n_layer": 2, "n_head": 2, "n_embd": 16}
    torch.manual_seed(0)
    hf_model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**shape, n_positions=256, initializer_range=0.3)
    ).eval()
    model_config = tiny_gpt(**shape, block_size=256)
    params = from_hf({n: p.detach().numpy() for n, p in hf_model.named_parameters()}, model_config)
    hf = HFLM(pretrained=hf_model, tokenizer=hf_tokenizer, add_bos_token=True, batch_size=8)
    assert hf.max_length == model_config.block_size and hf.prefix_token_id == bos
    tokenizer = GPT2Tokenizer(hf_tokenizer)
    assert_equal(
        model_config, params, tokenizer, folder, of_lm_eval(hf, folder, monkeypatch), rel=1e-4
    )


# --- the adapter's other requests ---


def requests(kind, *arguments):
    return [Instance(kind, {}, arguments=args, idx=0) for args in arguments]


def test_rolling_log_likelihood_is_the_sum_of_windows(quick):
    """A text of n tokens behind BOS: each token once, with as much context as the last row has."""
    model_config, params, tokenizer = quick
    text = "It was the best of times, it was the worst of times. " * 12
    ids = tokenizer.encode(text).tolist()
    assert len(ids) > 2 * model_config.block_size
    line = [tokenizer.bos_id, *ids]
    logits = jax.jit(
        lambda x: gpt.logits(model_config, params, gpt.hidden_states(model_config, params, x))
    )
    expected, done = 0.0, 0
    while done < len(ids):
        stop = min(done + model_config.block_size, len(ids))
        start = max(0, stop - model_config.block_size)
        row = np.asarray(logits(np.array([line[start:stop]]))[0], np.float64)
        log_probs = row - np.log(np.exp(row).sum(axis=1, keepdims=True))
        expected += sum(log_probs[i - start, ids[i]] for i in range(done, stop))
        done = stop
    (total,) = GPTJax(*quick).loglikelihood_rolling(
        requests("loglikelihood_rolling", (text,)), disable_tqdm=True
    )
    assert total == pytest.approx(expected, rel=1e-6)


def test_generation_is_greedy_and_ends_before_a_stop_string(quick):
    model_config, params, tokenizer = quick
    lm = GPTJax(*quick)

    def generate(**settings):
        arguments = ("The ", {"until": [], "max_gen_toks": 12, **settings})
        (text,) = lm.generate_until(requests("generate_until", arguments), disable_tqdm=True)
        return text

    whole = generate()
    assert len(whole) > 4 and whole == generate()
    stop = whole[3:5]
    assert generate(until=[stop]) == generate(until=stop) == whole[: whole.index(stop)]
    assert whole.startswith(generate(max_gen_toks=4)) and generate(max_gen_toks=4) != whole
