"""What was exported in the programs it is for: transformers and llama.cpp; and GPT-2s imported.

These need the extra `export`, torch, transformers and xllamacpp, which nothing else here does.
"""

import copy
import http.client
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_hf_qwen3 import as_imported, make_workdir, random_params

from configs import base
from configs import workdir as workdir_config
from configs.errors import DataError, UserError
from data_pipeline import byte_level
from data_pipeline.sources import parquet
from data_pipeline.token_store import TOKENIZER
from data_pipeline.tokenizer import MAX_SLICE, SPACE, WORD, Tokenizer
from gptjax import export
from gptjax.import_hf import import_hf
from gptjax.inference import Sampler, Sampling, continue_texts
from gptjax.inference.load import load_run
from gptjax.model import gpt
from gptjax.model.config import GPTConfig
from gptjax.train import trainer

pytestmark = pytest.mark.slow

NEEDS = "needs the extra `clients`"

ROOT = Path(__file__).parents[2]
GPT2_VOCAB = ROOT / ".." / "shared" / "gpt2_vocab"
ALPHABETS = [
    ["😀", "👩\u200d👩\u200d👧", "🇩🇪", "👍🏽", "❤\ufe0f", "\u200d", "\ufe0f"],
    ["é", "e\u0301", "\u0308", "ạ\u0323", "ﬁ", "Å", "\u0327"],
    [SPACE, f"{SPACE}the", " ", f" {SPACE}"],
    [*map(chr, range(32)), "\x7f", "\x85", "\u200b", "\u200e", "\u2028", "\ufeff", "\ufffd"],
    [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", " " * 9, "\n\n", " " * 300],
    [*"0123456789", "٣", "½", "1789", "3.14"],
    list("漢字仮名交じり文한국어"),
    list("abcdefghijklmnopqrstuvwxyzABCDEF.,;:!?<>()[]{}\"'|_-"),
    ["<s>", "<unk>", "<0x0A>", "</s>", "<|endoftext|>", "<", "0x0A>"],
    ["the", " the", " of", "President", " ing", "n't", "'ll", "aaaa", "abab", " aaaaaaa"],
    ["\U0010ffff", "\U00020000", "\ue000", "\ufffe", "\ud7ff", "\U0001d11e", "\x00", "x" * 300],
]


def fuzzed(n: int, seed: int) -> list[str]:
    """Strings of everything that tokenizers get wrong, mixed."""
    rng = random.Random(seed)
    texts = []
    for _ in range(n):
        alphabets = rng.sample(ALPHABETS, rng.randint(1, 4))
        pieces = [
            rng.choice(rng.choice(alphabets)) if rng.random() < 0.95 else any_character(rng)
            for _ in range(rng.choice((0, 1, 2, 5, 20, 80)))
        ]
        texts.append("".join(pieces))
    return texts


def any_character(rng: random.Random) -> str:
    code = rng.randrange(0x110000 - 0x800)
    return chr(code if code < 0xD800 else code + 0x800)  # no surrogates


def documents(n: int) -> list[str]:
    rows = parquet.read_row_group(ROOT / "data_pipeline/shard/quickstart.parquet", 0)
    return [next(rows).text for _ in range(n)]


@pytest.fixture(scope="module")
def workdir(debug_config, tmp_path_factory) -> Path:
    config = copy.deepcopy(debug_config)
    config.workdir = str(tmp_path_factory.mktemp("runs") / "exported")
    config.sample.max_new_tokens = 1
    trainer.train_and_evaluate(config)
    return Path(config.workdir)


@pytest.fixture(scope="module")
def run(workdir):
    return load_run(workdir)[1:4]


def our_logits(run, ids_BT: np.ndarray) -> np.ndarray:
    model_config, params, _ = run
    with jax.default_matmul_precision("float32"):
        return np.asarray(
            gpt.logits(model_config, params, gpt.hidden_states(model_config, params, ids_BT))
        )


def batch_of(run, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, run[0].vocab_size, (4, run[0].block_size)).astype(np.int32)


# transformers


class Transformers:
    def __init__(self, folder: Path):
        self.torch = pytest.importorskip("torch", reason=NEEDS)
        transformers = pytest.importorskip("transformers", reason=NEEDS)
        self.model, self.loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, local_files_only=True
        )
        self.model.eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def logits(self, ids_BT: np.ndarray) -> np.ndarray:
        with self.torch.no_grad():
            return self.model(self.torch.from_numpy(ids_BT).long()).logits.numpy()


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory) -> Transformers:
    out = tmp_path_factory.mktemp("hf") / "out"
    export.export_hf(workdir, out)
    return Transformers(out)


def assert_logits_agree(exported: Transformers, run) -> None:
    """With all tensors loaded, and no other."""
    assert not any(exported.loading[key] for key in ("missing_keys", "unexpected_keys"))
    ids_BT = batch_of(run)
    ours, theirs = our_logits(run, ids_BT), exported.logits(ids_BT)
    assert np.abs(ours).max() > 1  # a model that says something
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def assert_ids_and_texts_agree(theirs, ours: Tokenizer, texts: list[str]) -> None:
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (1, 1, ours.vocab_size)
    for text in texts:
        ids = ours.encode(text).tolist()
        assert theirs(text, add_special_tokens=False).input_ids == ids, text
        assert theirs(text).input_ids == [1, *ids], text
        assert theirs.decode(ids) == text
        assert theirs.decode([1, *ids], skip_special_tokens=True) == text


def test_transformers_loads_every_tensor_and_computes_our_logits(exported, run):
    assert_logits_agree(exported, run)


def test_transformers_gives_our_ids_and_our_text(exported, run):
    texts = [*fuzzed(3000, seed=1), *documents(20)]
    assert_ids_and_texts_agree(exported.tokenizer, run[2], texts)


def test_transformers_samples_the_same_greedy_text(exported, run):
    sampler, ours = Sampler(*run[:2]), run[2]
    ids = exported.tokenizer("The ", return_tensors="pt")
    theirs = exported.model.generate(**ids, max_new_tokens=20, do_sample=False)
    text = exported.tokenizer.decode(theirs[0], skip_special_tokens=True)
    greedy = Sampling(max_new_tokens=20, temperature=0.0, top_k=0, top_p=1.0)
    pieces = continue_texts(sampler, ours, ["The "], greedy, seeds=[0])
    assert text.startswith("The ") and len(text) > 5
    continued = "The " + "".join(piece for _, piece in pieces)
    assert text.rstrip("\ufffd") == continued.rstrip("\ufffd")


def test_an_export_is_imported_again(workdir, tmp_path):
    export.export_hf(workdir, tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "back")
    before, after = load_run(workdir)[1:4], load_run(tmp_path / "back")[1:4]
    assert as_imported(before[0]) == after[0]
    for a, b in zip(jax.tree.leaves(before[1]), jax.tree.leaves(after[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert before[2].hash == after[2].hash


# llama.cpp


class LlamaCpp:
    def __init__(self, path: Path, block_size: int):
        x = pytest.importorskip("xllamacpp", reason=NEEDS)
        params = x.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(path), block_size, 1
        params.n_gpu_layers, params.warmup, params.cpuparams.n_threads = 0, False, 1
        for name in ("cache_type_k", "cache_type_v"):
            setattr(params, name, x.ggml_type.GGML_TYPE_F32)  # its default is half precision,
        params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # as here
        self.server = x.Server(params)

    def post(self, path: str, **body) -> dict:
        connection = http.client.HTTPConnection(self.server.listening_address[7:], timeout=60)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def ids(self, text: str, *, bos: bool = False) -> list[int]:
        return self.post("/tokenize", content=text, add_special=bos, parse_special=False)["tokens"]

    def log_probs(self, ids: list[int], vocab_size: int) -> np.ndarray:
        # A drawn token that is no whole character is not reported: let it draw a plain one. The
        # bias is the sampler's, and not in what is returned.
        bias = [[self.ids("e")[0], 1000.0]]
        options = {"n_predict": 1, "n_probs": vocab_size, "cache_prompt": False}
        answer = self.post("/completion", prompt=ids, logit_bias=bias, **options)
        entries = answer["completion_probabilities"][0]["top_logprobs"]
        log_probs = np.full(vocab_size, np.nan)
        log_probs[[entry["id"] for entry in entries]] = [entry["logprob"] for entry in entries]
        return log_probs


def assert_log_probs_agree(llama: LlamaCpp, run, atol: float = 1e-3) -> None:
    """GPT-2: within 1e-3, for llama.cpp looks its GELU up in a table of half-precision numbers."""
    ids_T = batch_of(run)[0]
    log_probs_TV = np.asarray(jax.nn.log_softmax(our_logits(run, ids_T[None])[0]))
    for n in (1, 7, len(ids_T) - 1):
        theirs = llama.log_probs(ids_T[:n].tolist(), run[0].vocab_size)
        np.testing.assert_allclose(theirs, log_probs_TV[n - 1], rtol=0, atol=atol)
    assert log_probs_TV[6].max() - log_probs_TV[6].min() > 1


@pytest.fixture(scope="module")
def llama(workdir, run, tmp_path_factory) -> LlamaCpp:
    pytest.importorskip("gguf", reason="needs the extra `export`")
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    export.export_gguf(workdir, path)
    return LlamaCpp(path, run[0].block_size)


def test_llama_cpp_computes_our_log_probabilities(llama, run):
    assert_log_probs_agree(llama, run)


def test_llama_cpp_gives_our_ids_where_it_can(llama, run):
    ours = run[2]
    n_compared = 0
    for text in fuzzed(3000, seed=2):
        if SPACE in text or max(map(len, WORD.findall(text)), default=0) > 255:
            continue  # see gptjax/compat/gguf_file.py
        assert llama.ids(text) == ours.encode(text).tolist(), text
        n_compared += 1
    assert n_compared > 1500
    assert llama.ids("The end", bos=True) == [1, *ours.encode("The end").tolist()]
    assert llama.ids(SPACE) == llama.ids(" ") != ours.encode(SPACE).tolist()  # as documented


def test_a_gpt2_with_its_own_head_and_another_hidden_width(store, tmp_path):
    pytest.importorskip("gguf", reason="needs the extra `export`")
    config = base.get_config()
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "mlp_dim": 40}
    config.model.update(
        {**sizes, "tie_embeddings": False, "bias": True, "compute_dtype": "float32"}
    )
    model_config = GPTConfig.from_config(config, store.tokenizer.vocab_size)
    tokenizer = (store.path / TOKENIZER).read_bytes()
    params = random_params(model_config)
    params["lm_head"] /= 4  # log-probabilities as a GPT-2's: llama.cpp's GELU errs in proportion
    make_workdir(tmp_path / "run", config, params, tokenizer)
    export.export_hf(tmp_path / "run", tmp_path / "hf")
    export.export_gguf(tmp_path / "run", tmp_path / "gguf")
    run, theirs = load_run(tmp_path / "run")[1:4], Transformers(tmp_path / "hf")
    assert not any(theirs.loading[key] for key in ("missing_keys", "unexpected_keys"))
    ids_BT = batch_of(run)
    np.testing.assert_allclose(our_logits(run, ids_BT), theirs.logits(ids_BT), rtol=0, atol=1e-4)
    assert_log_probs_agree(LlamaCpp(tmp_path / "gguf", run[0].block_size), run)


# Import of a GPT-2


@pytest.fixture(scope="module")
def gpt2_source(tmp_path_factory) -> Path:
    """A GPT-2 with its real vocabulary and few, random weights, as transformers saves it."""
    if not GPT2_VOCAB.is_dir():
        pytest.skip(f"needs GPT-2's vocabulary in {GPT2_VOCAB}")
    torch = pytest.importorskip("torch", reason=NEEDS)
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 24, "n_positions": 48}
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
    with torch.no_grad():
        for name, p in gpt2.named_parameters():
            p.add_(torch.randn_like(p) * (0.02 if "wte" in name else 0.2))
    gpt2.save_pretrained(folder)
    (folder / "vocab.json").write_bytes((GPT2_VOCAB / "encoder.json").read_bytes())
    (folder / "merges.txt").write_bytes((GPT2_VOCAB / "vocab.bpe").read_bytes())
    return folder


@pytest.fixture(scope="module")
def imported(gpt2_source, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "gpt2"
    import_hf(gpt2_source, workdir)
    return workdir


def test_an_imported_gpt2_computes_what_transformers_does(gpt2_source, imported):
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    torch = pytest.importorskip("torch", reason=NEEDS)
    run = load_run(imported)[1:4]
    assert run[0].bias and run[0].vocab_size == 50_257
    ids_BT = batch_of(run)
    gpt2 = transformers.AutoModelForCausalLM.from_pretrained(gpt2_source)
    with torch.no_grad():
        theirs = gpt2(torch.from_numpy(ids_BT).long()).logits.numpy()
    np.testing.assert_allclose(our_logits(run, ids_BT), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read(gpt2_source, dtype, tmp_path):
    torch = pytest.importorskip("torch", reason=NEEDS)
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    gpt2 = transformers.AutoModelForCausalLM.from_pretrained(gpt2_source)
    gpt2.to(getattr(torch, dtype)).save_pretrained(tmp_path / "half")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "half" / name).write_bytes((gpt2_source / name).read_bytes())
    import_hf(tmp_path / "half", tmp_path / "run")
    params = load_run(tmp_path / "run")[2]
    np.testing.assert_array_equal(params["wpe"], gpt2.transformer.wpe.weight.float().detach())


def test_gpt2s_ids_of_fuzzed_text(imported):
    """tiktoken is OpenAI's own; a special in the text is plain text."""
    tiktoken = pytest.importorskip("tiktoken", reason=NEEDS)
    ours = Tokenizer.load(imported / "tokenizer.model")
    ranks = {token: i for i, token in enumerate(ours._table) if token}
    words = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    theirs = tiktoken.Encoding(
        "gpt2", pat_str=words, mergeable_ranks=ranks, special_tokens={byte_level.BOS: 50256}
    )
    assert (ours.bos_id, ours.vocab_size, ours.token_bytes[50256]) == (50256, 50257, 0)
    docs = documents(30)
    long_text = " ".join(docs * (1 + 3 * MAX_SLICE // sum(map(len, docs))))  # several slices
    assert len(long_text) > 2 * MAX_SLICE
    for text in [*fuzzed(3000, seed=3), *docs, long_text]:
        ids = ours.encode(text).tolist()
        assert ids == theirs.encode_ordinary(text), text[:200]
        assert ours.decode(ids) == text


def test_a_slice_without_a_place_to_cut_is_still_lossless(imported):
    ours = Tokenizer.load(imported / "tokenizer.model")
    text = "漢字" * MAX_SLICE
    assert ours.decode(ours.encode(text)) == text


def program(module: str, *arguments: str) -> str:
    """Runs a program as a user does; returns all that it prints."""
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def trained_and_exported(imported: Path, folder: Path) -> tuple[Any, Transformers, LlamaCpp]:
    """Trains from an import and exports it; returns the run and both clients."""
    tuned = folder / "tuned"
    program(
        "gptjax.main",
        f"--config=configs/workdir.py:{imported}",
        f"--config.init_from={imported}",
        f"--config.tokenizer.file={imported / 'tokenizer.model'}",
        f"--config.workdir={tuned}",
        "--config.data.source=data_pipeline/shard/quickstart.parquet",
        f"--config.data.cache_dir={folder / 'stores'}",
        "--config.data.val_fraction=0.05",
        "--config.allow_cpu=True",  # with the extra `target`, JAX has a CUDA plugin
        *("--config.train.max_iters=12", "--config.train.log_interval=1"),
        *("--config.train.gradient_accumulation_steps=1", "--config.eval.eval_iters=2"),
        *("--config.optim.warmup_iters=0", "--config.optim.learning_rate=5e-3"),
        *("--config.optim.lr_decay_iters=12", "--config.sample.max_new_tokens=2"),
    )
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < losses[0] - 0.1
    run = load_run(tuned)[1:4]
    program("gptjax.export", f"--workdir={tuned}", "--format=hf", f"--out={folder / 'hf'}")
    theirs = Transformers(folder / "hf")
    ids_BT = batch_of(run)
    np.testing.assert_allclose(our_logits(run, ids_BT), theirs.logits(ids_BT), rtol=0, atol=1e-4)
    gguf = folder / "tuned.gguf"
    program("gptjax.export", f"--workdir={tuned}", "--format=gguf", f"--out={gguf}")
    return run, theirs, LlamaCpp(gguf, run[0].block_size)


def test_a_run_trains_from_an_imported_gpt2_and_is_exported_again(imported, tmp_path):
    """The programs, as a user runs them; then transformers and llama.cpp on the result."""
    assert program("gptjax.generate", f"--workdir={imported}", "--max_new_tokens=3")
    run, theirs, llama = trained_and_exported(imported, tmp_path)
    assert_log_probs_agree(llama, run)
    for text in fuzzed(500, seed=4):
        ids = run[2].encode(text).tolist()
        assert theirs.tokenizer(text, add_special_tokens=False).input_ids == ids, text
        assert llama.ids(text) == ids, text


def test_an_imported_workdir_is_not_trained_in(imported):
    config = workdir_config.get_config(str(imported))
    config.data.source = str(ROOT / "data_pipeline/shard/quickstart.parquet")
    config.data.val_fraction = 0.05
    config.data.cache_dir = str(imported.parent / "stores")
    config.tokenizer.file = str(imported / "tokenizer.model")
    config.train.gradient_accumulation_steps = 1

    def contents() -> dict[Path, bytes]:  # the lock is made by asking whether it is free
        return {p: p.read_bytes() for p in imported.rglob("*") if p.is_file() and p.name != "lock"}

    before = contents()
    with pytest.raises(UserError, match="--config.init_from="):
        trainer.train_and_evaluate(config)
    assert contents() == before


def test_bad_sources_are_reported_and_nothing_is_created(gpt2_source, imported, tmp_path):
    with pytest.raises(UserError, match="exists"):
        import_hf(gpt2_source, imported)
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        import_hf(source, tmp_path / "run")
    (source / "config.json").write_bytes((gpt2_source / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        import_hf(source, tmp_path / "run")
    spec = json.loads((imported / "tokenizer.model").read_text())
    (source / "tokenizer.json").write_text(json.dumps(spec | {"normalizer": {"type": "NFC"}}))
    with pytest.raises(DataError, match="its normalizer NFC changes text"):
        import_hf(source, tmp_path / "run")
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"no tokenizer\.json of a byte-level BPE"):
        import_hf(source, tmp_path / "run")
    (source / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="is missing"):
        import_hf(source, tmp_path / "run")
    weights = (gpt2_source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(weights[:-1000])
    with pytest.raises(UserError, match="damaged"):
        import_hf(source, tmp_path / "run")
    (source / "model.safetensors").write_bytes(weights)
    hf = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(hf | {"n_positions": 50}))
    with pytest.raises(UserError, match=r"wpe.*\(48, 24\), not \(50, 24\)"):
        import_hf(source, tmp_path / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
