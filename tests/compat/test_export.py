"""What is exported, read by hand: names, numbers, headers, a tokenizer.json replayed naively."""

import copy
import json
import logging
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from gpt2_reference import FIXTURE, gpt_config
from gpt2_reference import from_hf as independent_from_hf
from helpers import HOSTILE
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs import workdir as workdir_config
from configs.errors import UserError
from data_pipeline import progress
from data_pipeline.tokenizer import MAX_WORD, SPACE, Tokenizer
from gptjax import export
from gptjax.compat import gguf_file, hf_tokenizer, hf_weights, hub, model_card
from gptjax.compat.hf_weights import from_hf, to_hf
from gptjax.import_hf import import_hf
from gptjax.inference.load import load_run
from gptjax.model.config import GPTConfig
from gptjax.train import init_state, trainer


@pytest.fixture(scope="session")
def workdir(debug_config, tmp_path_factory) -> Path:
    """A debug run of two steps."""
    config = copy.deepcopy(debug_config)
    config.workdir = str(tmp_path_factory.mktemp("runs") / "exported")
    config.train.max_iters = 2
    config.sample.max_new_tokens = 1
    trainer.train_and_evaluate(config)
    return Path(config.workdir)


# tokenizer.json


class Replayed:
    """tokenizer.json as its format is defined, done as simply as can be; no scores, no words."""

    def __init__(self, spec: dict):
        assert spec["normalizer"] is None and spec["added_tokens"] == []
        self.cut = re.compile(spec["pre_tokenizer"]["pattern"]["Regex"])
        self.vocab = spec["model"]["vocab"]
        self.ranks = {tuple(pair): i for i, pair in enumerate(spec["model"]["merges"])}

    def encode(self, text: str) -> list[int]:
        ids = []
        for word in self.cut.findall(text):
            parts = []
            for char in word:
                known = char in self.vocab
                parts += [char] if known else [f"<0x{byte:02X}>" for byte in char.encode()]
            while True:
                pairs = list(zip(parts, parts[1:], strict=False))
                ranked = [(self.ranks[p], i) for i, p in enumerate(pairs) if p in self.ranks]
                if not ranked:
                    break
                _, i = min(ranked)
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            ids += [self.vocab[part] for part in parts]
        return ids


@pytest.fixture(scope="module")
def replayed(store) -> Replayed:
    return Replayed(hf_tokenizer.tokenizer_json(store.tokenizer))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="athein \n▁<s>019é", max_size=60))
@example("<s><unk><0x0A>")
@example("x" * (MAX_WORD + 5) + " " * (2 * MAX_WORD) + "y")
@example(f" {SPACE}{SPACE} a{SPACE}")
def test_tokenizer_json_gives_our_ids(replayed, store, text):
    assert replayed.encode(text) == store.tokenizer.encode(text).tolist()


def test_tokenizer_json_gives_our_ids_of_hostile_and_plain_text(replayed, store):
    split = store.split("val")
    plain = [store.tokenizer.decode(split.read(i, 1, split.doc_lengths[i])) for i in range(5)]
    for text in [*HOSTILE, *(text[:5_000] for text in plain)]:
        assert replayed.encode(text) == store.tokenizer.encode(text).tolist(), text[:50]


def test_every_reachable_piece_has_one_merge(store):
    pieces = store.tokenizer.pieces()
    pairs = hf_tokenizer.last_merges(pieces)
    merged = ["".join(pair) for pair in pairs]
    assert len(set(merged)) == len(merged)
    reached = {p.text for p in pieces if store.tokenizer.encode(p.text).size == 1}
    assert {text for text in reached if len(text) > 1} == set(merged)


# Weights


def hf_fixture() -> tuple[dict[str, np.ndarray], GPTConfig]:
    arrays = dict(np.load(FIXTURE))
    hparams = {k.removeprefix("hparams/"): a for k, a in arrays.items() if "hparams/" in k}
    weights = {k.removeprefix("weights/"): a for k, a in arrays.items() if "weights/" in k}
    return weights, gpt_config(hparams, bias=True)


def hf_json(model_config: GPTConfig) -> dict:
    sizes = {key: getattr(model_config, key) for key in ("n_embd", "n_layer", "n_head")}
    return {"model_type": "gpt2", "n_positions": model_config.block_size, **sizes}


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_weights_of_hugging_face_are_imported_and_exported():
    weights, config = hf_fixture()
    params, bias = from_hf(weights, hf_json(config), config.vocab_size)
    assert bias
    assert_same(params, independent_from_hf(weights, config))
    back = to_hf(config, params, config.vocab_size)
    assert back.keys() == weights.keys()
    assert_same(back, weights)


def test_names_of_the_first_checkpoints_and_tensors_that_are_no_parameters():
    weights, config = hf_fixture()
    bare = {name.removeprefix("transformer."): w for name, w in weights.items()}
    bare["h.0.attn.bias"] = np.tril(np.ones((1, 1, 24, 24)))  # the causal mask
    bare["lm_head.weight"] = bare["wte.weight"]
    params, _ = from_hf(bare, hf_json(config), config.vocab_size)
    assert_same(params, independent_from_hf(weights, config))
    bare["lm_head.weight"] = bare["wte.weight"] + 1
    with pytest.raises(UserError, match="tie_word_embeddings"):
        from_hf(bare, hf_json(config), config.vocab_size)
    del bare["h.1.ln_2.bias"]
    bare.pop("lm_head.weight")
    with pytest.raises(UserError, match=r"h\.1\.ln_2\.bias"):
        from_hf(bare, hf_json(config), config.vocab_size)


def test_a_model_without_biases_has_zeros_there_and_none_again():
    weights, config = hf_fixture()
    zero = {n: np.zeros_like(w) if n.endswith("bias") else w for n, w in weights.items()}
    params, bias = from_hf(zero, hf_json(config), config.vocab_size)
    assert not bias and "bias" not in params["ln_f"]
    unbiased = gpt_config({**vars(config), "n_positions": config.block_size}, bias=False)
    assert_same(to_hf(unbiased, params, config.vocab_size), zero)


def test_a_padded_vocabulary_is_trimmed_both_ways():
    weights, config = hf_fixture()
    params, _ = from_hf(weights, hf_json(config), config.vocab_size - 5)
    assert_same(params["wte"], weights["transformer.wte.weight"][:-5])
    params, _ = from_hf(weights, hf_json(config), config.vocab_size)
    hf = to_hf(config, params, config.vocab_size - 5)
    assert_same(hf["transformer.wte.weight"], params["wte"][:-5])
    gguf = gguf_file.tensors(config, params, config.vocab_size - 5)
    assert_same(gguf["token_embd.weight"], params["wte"][:-5])
    with pytest.raises(UserError, match="do not belong together"):
        from_hf(weights, hf_json(config), config.vocab_size + 1)


def test_matrices_are_transposed_for_llama_cpp():
    weights, config = hf_fixture()
    params, _ = from_hf(weights, hf_json(config), config.vocab_size)
    gguf = gguf_file.tensors(config, params, config.vocab_size)
    assert len(gguf) == len(weights)
    assert_same(gguf["blk.1.ffn_down.weight"], weights["transformer.h.1.mlp.c_proj.weight"].T)
    assert_same(gguf["blk.0.attn_qkv.bias"], weights["transformer.h.0.attn.c_attn.bias"])
    assert_same(gguf["position_embd.weight"], weights["transformer.wpe.weight"])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model_type", "bloom", "model_type is 'bloom'"),
        ("activation_function", "relu", "activation_function"),
        ("layer_norm_epsilon", -1e-6, "layer_norm_epsilon"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn"),
        ("n_head", 3, "does not divide"),
        ("n_inner", "7", "n_inner is '7'"),
        ("quantization_config", {"bits": 4}, "quantization_config is"),
        ("n_layer", "12", "n_layer is '12'"),
    ],
)
def test_other_models_are_refused(store, key, value, words):
    hf = hf_weights.hf_config(hf_fixture()[1], store.tokenizer)
    sizes = {"block_size": 24, "n_embd": 20, "n_layer": 2, "n_head": 4, "mlp_dim": 80}
    assert sizes.items() <= hf_weights.model_settings(hf).items()
    with pytest.raises(UserError, match=words):
        hf_weights.model_settings(hf | {key: value})


# Files


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The format by hand: 8 bytes of length, a JSON header, then the tensors without gaps."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    ranges = sorted(entry["data_offsets"] for entry in header.values())
    assert [a for a, _ in ranges] == [0, *(b for _, b in ranges[:-1])]
    assert start + ranges[-1][1] == len(data)
    return {
        name: np.frombuffer(
            data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]], "<f4"
        ).reshape(entry["shape"])
        for name, entry in header.items()
    }


def test_the_exported_folder(workdir, tmp_path):
    out = tmp_path / "out"
    export.export_hf(workdir, out)
    model_config, params, tokenizer = load_run(workdir)[1:4]
    tensors = read_safetensors(out / "model.safetensors")
    assert_same(tensors, to_hf(model_config, params, tokenizer.vocab_size))
    config = json.loads((out / "config.json").read_text())
    assert hf_weights.model_settings(config)["n_embd"] == model_config.n_embd == 32
    assert (config["vocab_size"], config["bos_token_id"]) == (512, 1)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [1], "pad_token_id": 0}
    names = json.loads((out / "tokenizer_config.json").read_text())
    assert (names["bos_token"], names["eos_token"], names["pad_token"]) == ("<s>", "<s>", "<unk>")
    assert "chat_template" not in names and names["split_special_tokens"]
    spec = json.loads((out / "tokenizer.json").read_text())
    assert Replayed(spec).encode("The end") == tokenizer.encode("The end").tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_existing_paths_are_left_alone(workdir, tmp_path):
    with pytest.raises(UserError, match="exists"):
        export.export_hf(workdir, tmp_path)
    with pytest.raises(UserError, match="not the workdir of a run"):
        export.export_hf(tmp_path, tmp_path / "new" / "out")
    assert list(tmp_path.rglob("*")) == []


def test_weights_of_half_the_size(workdir, tmp_path):
    """Each is the nearest bfloat16: the upper half of a float32, rounded to even."""
    export.export_hf(workdir, tmp_path / "out", "bfloat16")
    data = (tmp_path / "out/model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    model_config, params, tokenizer = load_run(workdir)[1:4]
    tensors = to_hf(model_config, params, tokenizer.vocab_size)
    assert header.keys() == tensors.keys() | {"__metadata__"}
    for name, array in tensors.items():
        assert header[name]["dtype"] == "BF16"
        first, last = header[name]["data_offsets"]
        ours = np.frombuffer(data[start + first : start + last], "<u2").astype(np.uint32)
        bits = array.reshape(-1).view(np.uint32)
        assert_same(ours, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == "bfloat16"
    import_hf(tmp_path / "out", tmp_path / "back")
    back = load_run(tmp_path / "back").params
    assert_same(back, jax.tree.map(lambda x: np.asarray(x.astype("bfloat16"), np.float32), params))


def test_the_model_card(workdir, tmp_path):
    run = load_run(workdir)
    (workdir / "eval").mkdir(exist_ok=True)
    results = {"val": {"bits_per_byte": 3.25}, "benchmarks": {"piqa": {"accuracy": 0.5}}}
    (workdir / "eval" / f"{run.step}.json").write_text(json.dumps(results))
    text = model_card.card(run, workdir, "float32")
    shutil.rmtree(workdir / "eval")
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert "library_name: transformers" in head and "- gpt2" in head
    for words in (
        *("# exported", "| parameters | 42,", "GPT2LMHeadModel: 2 layers x 32, 2 heads"),
        *("| training | 2 steps of 8 x 32 tokens with adamw, 512 targets in all |", "nats a token"),
        *("- `quickstart.parquet`: 2,736 documents, 3,192,148 bytes", "bits per byte", "piqa"),
        *('AutoTokenizer.from_pretrained("exported")', "It sees 32 tokens at a time."),
    ):
        assert words in body, words
    assert str(workdir.parent) not in text and "apply_chat_template" not in text


class FakeHub:
    """`huggingface_hub.HfApi`, which keeps what it is asked for."""

    def __init__(self, library_name):
        self.calls = []
        FakeHub.last = self

    def create_repo(self, name, *, private, exist_ok):
        self.calls.append((name, private, exist_ok))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if repo_id.startswith("nobody"):
            raise ConnectionError("401 Client Error\nmore")
        self.calls.append((repo_id, sorted(p.name for p in folder_path.iterdir())))


def test_a_folder_is_pushed_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=FakeHub))
    (tmp_path / "config.json").touch()
    address = hub.push(tmp_path, "user/name", private=True)
    assert address == "https://huggingface.co/user/name"
    assert FakeHub.last.calls == [("user/name", True, True), ("user/name", ["config.json"])]
    with pytest.raises(UserError, match=r"401 Client Error\). The folder is complete.*hf upload"):
        hub.push(tmp_path, "nobody/name", private=False)
    hub.check_name("user/name-1.0")
    for wrong in ("name", "a/b/c", "https://x/y", "a b/c"):
        with pytest.raises(UserError, match="USER/NAME"):
            hub.check_name(wrong)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"gptjax\[remote\]"):
        hub.check_name("user/name")


def test_a_missing_package_is_reported(workdir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"package gguf.*gptjax\[export\]"):
        export.export_gguf(workdir, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", [export.export_hf, export.export_gguf])
def test_a_long_export_shows_how_far_it_is(function, workdir, tmp_path, monkeypatch, caplog):
    """Each parameter that is written is counted once, and the end is not announced twice."""
    pytest.importorskip("gguf", reason="needs the extra `export`")
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        function(workdir, tmp_path / "out")
    model_config, params, tokenizer = load_run(workdir)[1:4]
    tensors = to_hf(model_config, params, tokenizer.vocab_size)
    n_params = sum(tensor.size for tensor in tensors.values())
    found = [m for line in caplog.messages if (m := re.match(r"exporting: ([\d,]+) of", line))]
    done = [int(m[1].replace(",", "")) for m in found]
    assert len(done) == len(tensors) and done == sorted(set(done)) and done[-1] == n_params
    assert all(f" of {n_params:,} parameters, " in m.string for m in found)
    assert " 0s left" in found[-1].string


# Another run starts with the model


def continued(workdir: Path, debug_config, tmp_path: Path):
    config = workdir_config.get_config(str(workdir))
    config.init_from, config.workdir = str(workdir), str(tmp_path / "tuned")
    config.tokenizer.file = str(workdir / "tokenizer.model")
    config.data = copy.deepcopy(debug_config.data)
    return config


def test_a_run_starts_with_the_parameters_and_tokenizer_of_another(
    workdir, debug_config, tmp_path, monkeypatch
):
    config = continued(workdir, debug_config, tmp_path)
    starts = []

    def spy(*args):
        starts.append(jax.device_get(init_state.initial_state(*args)))  # it is donated afterwards
        return init_state.initial_state(*args)

    monkeypatch.setattr(trainer, "initial_state", spy)
    state = trainer.train_and_evaluate(config)
    _, params, tokenizer = load_run(workdir)[1:4]
    (start,) = starts
    assert_same(start.params, params)
    assert (int(start.step), int(state.step)) == (0, 2)
    assert not all(np.any(x) for x in jax.tree.leaves(start.opt_state))  # a new optimizer
    assert Tokenizer.load(tmp_path / "tuned/tokenizer.model").hash == tokenizer.hash


def test_a_model_of_another_shape_is_refused_and_nothing_made(workdir, debug_config, tmp_path):
    config = continued(workdir, debug_config, tmp_path)
    config.model.n_embd, config.model.bias = 64, True
    with pytest.raises(UserError, match=r"n_embd: 32 saved, 64 now\n.*bias: False saved"):
        trainer.train_and_evaluate(config)
    assert not (tmp_path / "tuned" / "config.json").exists()


def test_a_missing_tokenizer_file_is_reported(workdir, debug_config, tmp_path):
    config = continued(workdir, debug_config, tmp_path)
    config.tokenizer.file = str(tmp_path / "none")
    with pytest.raises(UserError, match="no such file"):
        trainer.train_and_evaluate(config)


@pytest.mark.parametrize("given", [":{}/none", ""])
def test_a_folder_that_is_no_workdir_is_reported_before_any_work(given, tmp_path):
    flag = f"--config=configs/workdir.py{given.format(tmp_path)}"
    command = [sys.executable, "-m", "data_pipeline.prepare", flag]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 2
    assert "must name the workdir of a run" in result.stderr and "Traceback" not in result.stderr
