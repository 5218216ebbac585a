"""A modern model as a Qwen3 or Llama in transformers and llama.cpp, and theirs imported.

These need the extra `export`, torch, transformers and xllamacpp, which nothing else here does.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from test_export_clients import (
    LlamaCpp,
    Transformers,
    assert_ids_and_texts_agree,
    assert_log_probs_agree,
    assert_logits_agree,
    batch_of,
    documents,
    fuzzed,
    our_logits,
    program,
    trained_and_exported,
)
from test_hf_qwen3 import SHAPES, make_workdir, modern_config, modern_run, random_params

from configs.errors import UserError
from data_pipeline.token_store import TOKENIZER
from data_pipeline.tokenizer import SPACE, WORD
from gptjax import export
from gptjax.import_hf import import_hf
from gptjax.inference.load import load_run
from gptjax.model.config import GPTConfig

pytestmark = pytest.mark.slow

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(scope="module", params=SHAPES)
def workdir(request, store, tmp_path_factory) -> Path:
    """A modern model of random parameters: heads of several widths, shared or not."""
    workdir = tmp_path_factory.mktemp("runs") / request.param
    _, params = modern_run(request.param, store.tokenizer.vocab_size)
    tokenizer = (store.path / TOKENIZER).read_bytes()
    make_workdir(workdir, modern_config(request.param), params, tokenizer)
    return workdir


@pytest.fixture(scope="module")
def run(workdir):
    return load_run(workdir)[1:4]


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory) -> Transformers:
    out = tmp_path_factory.mktemp("hf") / "out"
    export.export_hf(workdir, out)
    return Transformers(out)


@pytest.fixture(scope="module")
def llama(workdir, run, tmp_path_factory) -> LlamaCpp:
    pytest.importorskip("gguf", reason="needs the extra `export`")
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    export.export_gguf(workdir, path)
    return LlamaCpp(path, run[0].block_size)


@pytest.fixture(scope="module")
def greedy_ids(run) -> tuple[list[int], list[int]]:
    """A prompt and the likeliest tokens after it, by whole forward passes: ids, for what random
    weights say is no text."""
    model_config, _, tokenizer = run
    prompt = [tokenizer.bos_id, *tokenizer.encode("The ").tolist()]
    ids_T = np.zeros(model_config.block_size, np.int32)
    ids_T[: len(prompt)] = prompt
    for n in range(len(prompt), 25):
        ids_T[n] = our_logits(run, ids_T[None])[0, n - 1].argmax()
    return prompt, ids_T[len(prompt) : 25].tolist()


def test_transformers_loads_every_tensor_and_computes_our_logits(exported, run):
    kind = "Qwen3ForCausalLM" if run[0].qk_norm else "LlamaForCausalLM"
    assert type(exported.model).__name__ == kind
    assert_logits_agree(exported, run)


def test_transformers_gives_our_ids_and_our_text(exported, run):
    assert_ids_and_texts_agree(exported.tokenizer, run[2], [*fuzzed(1000, seed=5), *documents(5)])


def test_transformers_continues_with_the_same_greedy_ids(exported, greedy_ids):
    prompt, expected = greedy_ids
    ids = exported.tokenizer("The ", return_tensors="pt")
    assert ids.input_ids[0].tolist() == prompt
    theirs = exported.model.generate(**ids, max_new_tokens=len(expected), do_sample=False)
    assert theirs[0].tolist() == prompt + expected


def test_llama_cpp_computes_our_log_probabilities(llama, run):
    assert_log_probs_agree(llama, run, atol=1e-4)


def test_llama_cpp_continues_with_the_same_greedy_ids(llama, greedy_ids):
    prompt, expected = greedy_ids
    options = {"n_predict": len(expected), "temperature": 0, "return_tokens": True}
    assert llama.post("/completion", prompt=prompt, **options)["tokens"] == expected


def test_llama_cpp_gives_our_ids_where_it_can(llama, run):
    ours = run[2]
    assert llama.ids("The end", bos=True) == [1, *ours.encode("The end").tolist()]
    for text in fuzzed(300, seed=6):
        if SPACE not in text and max(map(len, WORD.findall(text)), default=0) <= 255:
            assert llama.ids(text) == ours.encode(text).tolist(), text


def test_llama_cpp_gets_no_file_of_what_it_cannot_compute(store, tmp_path):
    pytest.importorskip("gguf", reason="needs the extra `export`")
    config = modern_config("tied")
    config.model.mlp = "relu2"
    model_config = GPTConfig.from_config(config, store.tokenizer.vocab_size)
    tokenizer = (store.path / TOKENIZER).read_bytes()
    make_workdir(tmp_path / "run", config, random_params(model_config), tokenizer)
    with pytest.raises(UserError, match="cannot be exported"):
        export.export_gguf(tmp_path / "run", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


# Import of a Qwen3 or a Llama


@pytest.fixture(scope="module", params=["tied Qwen3", "untied Qwen3", "untied Llama"])
def qwen3_source(request, store, tmp_path_factory) -> Path:
    """What transformers makes and saves, its vocabulary padded, beside our tokenizer.

    The Llama is in bfloat16, and in several files.
    """
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    tied, kind = request.param.split()
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=store.tokenizer.vocab_size + 16,
        hidden_size=48,
        intermediate_size=100,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 1234.0, **(LLAMA3 if kind == "Llama" else {})},
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied == "tied",
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(torch.randn_like(p) * (0.02 if "embed" in name or "head" in name else 0.2))
    folder = tmp_path_factory.mktemp("source")
    if kind == "Llama":
        assert model.config.rope_parameters["rope_type"] == "llama3"
        model.bfloat16().save_pretrained(folder, max_shard_size="60KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
    else:
        model.save_pretrained(folder)
    (folder / TOKENIZER).write_bytes((store.path / TOKENIZER).read_bytes())
    return folder


@pytest.fixture(scope="module")
def imported(qwen3_source, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "qwen3"
    import_hf(qwen3_source, workdir)
    return workdir


def test_an_imported_qwen3_computes_what_transformers_does(qwen3_source, imported):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    run = load_run(imported)[1:4]
    model_config = run[0]
    assert (
        model_config.rope_theta,
        model_config.n_kv_head,
        model_config.mlp_dim,
        model_config.block_size,
    ) == (1234.0, 2, 100, 64)
    ids_BT = batch_of(run)
    qwen3 = transformers.AutoModelForCausalLM.from_pretrained(qwen3_source, dtype=torch.float32)
    assert model_config.tie_embeddings == qwen3.config.tie_word_embeddings
    with torch.no_grad():
        theirs = qwen3(torch.from_numpy(ids_BT).long()).logits.numpy()
    theirs = theirs[..., : model_config.vocab_size]  # the rest is padding
    np.testing.assert_allclose(our_logits(run, ids_BT), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("attention_bias", True, "attention_bias is True"),
        ("use_sliding_window", True, "use_sliding_window is True"),
        ("head_dim", 16, "head_dim is 16, not hidden_size"),
        (
            "rope_parameters",
            {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1234.0},
            "rope_type is 'dynamic'",
        ),
    ],
)
@pytest.mark.parametrize("qwen3_source", ["tied Qwen3"], indirect=True)
def test_what_transformers_saves_of_another_qwen3_is_refused(
    key, value, words, qwen3_source, tmp_path
):
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config.from_pretrained(qwen3_source).to_dict()
    source = tmp_path / "source"
    transformers.Qwen3Config(**config | {key: value}).save_pretrained(source)
    (source / TOKENIZER).write_bytes((qwen3_source / TOKENIZER).read_bytes())
    with pytest.raises(UserError, match=words):
        import_hf(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("qwen3_source", ["untied Qwen3", "untied Llama"], indirect=True)
def test_a_run_trains_from_an_imported_qwen3_and_is_exported_again(imported, tmp_path):
    """The programs, as a user runs them; then transformers and llama.cpp on the result."""
    shard = "data_pipeline/shard/quickstart.parquet"
    assert program("gptjax.generate", f"--workdir={imported}", "--max_new_tokens=3")
    evaluation = ("--noval", f"--text={shard}", "--limit=20")
    printed = program("gptjax.evaluate", f"--workdir={imported}", *evaluation)
    bits = float(re.search(r"bits/byte (\S+)", printed)[1])
    assert 2 < bits < 30  # random weights, on text
    run, _, llama = trained_and_exported(imported, tmp_path)
    assert_log_probs_agree(llama, run, atol=1e-4)
