"""A modern model's tensors under Qwen3's or Llama's names, computed with by hand in NumPy."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from test_export import assert_same, hf_fixture

from configs import base, modern
from configs.errors import UserError
from data_pipeline.token_store import TOKENIZER
from gptjax import export
from gptjax.checkpoint import manager
from gptjax.common.workdir import save_config
from gptjax.compat import gguf_file
from gptjax.compat.hf_architectures import ARCHITECTURES, GPT2, QWEN3
from gptjax.compat.hf_weights import from_hf, hf_config, model_settings, to_hf
from gptjax.import_hf import import_hf
from gptjax.inference.load import load_run
from gptjax.model import gpt
from gptjax.model.config import GPTConfig

SHAPES = {  # heads of 6, 16 and 40; two, four and one of queries for each of keys and values
    "tied": {"n_head": 4, "n_embd": 24, "n_kv_head": 2, "mlp_dim": 36, "rope_theta": 500.0},
    "untied": {"n_head": 4, "n_embd": 64, "n_kv_head": 1, "tie_embeddings": False},
    "wide": {"n_head": 2, "n_embd": 80, "rope_theta": 1e6},
    "llama": {"n_head": 4, "n_embd": 48, "n_kv_head": 2, "qk_norm": False, "norm_eps": 1e-3},
    "llama3": {"n_head": 2, "n_embd": 64, "qk_norm": False, "rope_scaling": (4.0, 1.0, 3.0, 16)},
    "linear": {"n_head": 2, "n_embd": 48, "qk_norm": False, "rope_scaling": (2.5,)},
}


def modern_config(name: str):
    config = base.get_config()
    modern.apply(config)
    config.model.update({"n_layer": 2, "block_size": 32, "tie_embeddings": True} | SHAPES[name])
    config.model.compute_dtype, config.model.attention = "float32", "xla"
    return config


def modern_run(name: str, vocab_size: int) -> tuple[GPTConfig, gpt.Params]:
    model_config = GPTConfig.from_config(modern_config(name), vocab_size)
    return model_config, random_params(model_config)


def random_params(model_config: GPTConfig) -> gpt.Params:
    """Parameters with which every part of the model affects the logits."""
    shapes = jax.eval_shape(lambda: gpt.init(model_config, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def draw(path, leaf) -> np.ndarray:
        key = path[-1].key
        if key == "scale":
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        std = leaf.shape[-2] ** -0.5 if key == "kernel" else 0.3
        return rng.normal(0, std, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_workdir(workdir, config, params, tokenizer_bytes: bytes) -> None:
    """Writes the files of a run of this configuration."""
    workdir.mkdir()
    config.tokenizer.vocab_size = len(params["wte"])
    (workdir / TOKENIZER).write_bytes(tokenizer_bytes)
    manager.save_params(workdir, params)
    save_config(config, workdir)


def as_imported(model_config: GPTConfig) -> GPTConfig:
    """The same model, with the initial values of an imported one."""
    return dataclasses.replace(model_config, zero_init=False)


@pytest.fixture(params=SHAPES)
def run(request):
    return modern_run(request.param, vocab_size=50)


def qwen3_logits(hf: dict, tensors: dict[str, np.ndarray], ids_T: np.ndarray) -> np.ndarray:
    """Logits (T, V) in float64 by the definition of Qwen3, token by token and head by head.

    Llama's is the same without norms of queries and keys.
    """
    w = {name: array.astype(np.float64) for name, array in tensors.items()}
    n_head, n_kv_head = hf["num_attention_heads"], hf["num_key_value_heads"]
    width = hf["head_dim"]

    def norm(x, name):
        return x / np.sqrt((x * x).mean() + hf["rms_norm_eps"]) * w[f"{name}.weight"]

    def normed(head, name):
        return norm(head, name) if hf["model_type"] == "qwen3" else head

    def scaled(frequency):
        """As transformers defines it, by wavelengths."""
        rope = hf.get("rope_scaling", {"rope_type": "default"})
        if rope["rope_type"] == "default":
            return frequency
        if rope["rope_type"] == "linear":
            return frequency / rope["factor"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        window, wavelength = rope["original_max_position_embeddings"], 2 * np.pi / frequency
        if wavelength < window / high:
            return frequency
        if wavelength > window / low:
            return frequency / rope["factor"]
        smooth = (window / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / rope["factor"] + smooth * frequency

    def turned(x, t):
        y = np.empty_like(x)
        for i in range(width // 2):
            angle = t * scaled(1 / hf["rope_theta"] ** (2 * i / width))
            a, b = x[i], x[i + width // 2]
            y[i] = a * np.cos(angle) - b * np.sin(angle)
            y[i + width // 2] = b * np.cos(angle) + a * np.sin(angle)
        return y

    x_T = [w["model.embed_tokens.weight"][i] for i in ids_T]
    for layer in range(hf["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        q, k, v = ([], [], [])
        for t, x in enumerate(x_T):
            h = norm(x, f"{at}.input_layernorm")
            rows = [
                (w[f"{at}.self_attn.{name}_proj.weight"] @ h).reshape(-1, width) for name in "qkv"
            ]
            q.append([turned(normed(head, f"{at}.self_attn.q_norm"), t) for head in rows[0]])
            k.append([turned(normed(head, f"{at}.self_attn.k_norm"), t) for head in rows[1]])
            v.append(rows[2])
        for t, x in enumerate(x_T):
            heads = []
            for n in range(n_head):
                m = n // (n_head // n_kv_head)
                scores = np.exp([q[t][n] @ k[s][m] / width**0.5 for s in range(t + 1)])
                heads += [sum(p * v[s][m] for s, p in enumerate(scores / scores.sum()))]
            y = x + w[f"{at}.self_attn.o_proj.weight"] @ np.concatenate(heads)
            h = norm(y, f"{at}.post_attention_layernorm")
            gate = w[f"{at}.mlp.gate_proj.weight"] @ h
            up = w[f"{at}.mlp.up_proj.weight"] @ h
            x_T[t] = y + w[f"{at}.mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
    head = w["model.embed_tokens.weight" if hf["tie_word_embeddings"] else "lm_head.weight"]
    return np.stack([head @ norm(x, "model.norm") for x in x_T])


def test_the_definition_gives_our_logits(run, store):
    model_config, params = run
    ids_T = np.random.default_rng(1).integers(0, 50, 20).astype(np.int32)
    with jax.default_matmul_precision("float32"):
        x_BTD = jax.jit(gpt.hidden_states, static_argnums=0)(model_config, params, ids_T[None])
        ours = np.asarray(gpt.logits(model_config, params, x_BTD)[0])
    theirs = qwen3_logits(
        hf_config(model_config, store.tokenizer), to_hf(model_config, params, 50), ids_T
    )
    assert np.abs(ours).max() > 1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_config_json(store):
    model_config, _ = modern_run("tied", vocab_size=512)
    assert hf_config(model_config, store.tokenizer) == {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 512,
        "max_position_embeddings": 32,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "intermediate_size": 36,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 500.0,
        "attention_bias": False,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "dtype": "float32",
    }
    other = hf_config(modern_run("untied", vocab_size=512)[0], store.tokenizer)
    assert (other["tie_word_embeddings"], other["num_key_value_heads"]) == (False, 1)
    assert other["intermediate_size"] == 192  # 8/3 of 64, in whole 64s


def test_parameters_come_back_bit_for_bit(run, store):
    model_config, params = run
    tensors = to_hf(model_config, params, 50)
    assert ("lm_head.weight" in tensors) != model_config.tie_embeddings
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in tensors.values())
    hf = hf_config(model_config, store.tokenizer)
    back, bias = from_hf(tensors, hf, 50)
    assert not bias
    assert_same(back, params)
    bare = {name.removeprefix("model."): array for name, array in tensors.items()}
    assert_same(from_hf(bare, hf, 50)[0], params)
    bare["layers.1.input_layernorm.weight"] = np.ones(3)
    with pytest.raises(UserError, match=r"input_layernorm\.weight: .*same shape"):
        from_hf(bare, hf, 50)
    del bare["layers.1.input_layernorm.weight"]
    title = "Qwen3" if model_config.qk_norm else "Llama"
    with pytest.raises(UserError, match=rf"layers\.1\.input_layernorm\.weight: is it a {title}"):
        from_hf(bare, hf, 50)


def test_leaves_of_the_configuration_come_back(run, store):
    model_config, _ = run
    leaves = model_settings(hf_config(model_config, store.tokenizer))
    assert dataclasses.replace(as_imported(model_config), **leaves) == as_imported(model_config)
    theirs = {f.name for f in dataclasses.fields(model_config)} - leaves.keys()
    # What decides no logit, or what other functions set. A new field gets its place in the
    # tables of gptjax/compat/hf_architectures.py, or here.
    assert theirs == {
        *("vocab_size", "dropout", "zero_init"),
        *("compute_dtype", "remat", "scan_unroll", "attention"),
    }


def test_a_padded_vocabulary_is_trimmed_both_ways(store):
    model_config, params = modern_run("untied", vocab_size=50)
    tensors = to_hf(model_config, params, 45)
    assert_same(tensors["lm_head.weight"], params["lm_head"][:45])
    assert_same(tensors["model.embed_tokens.weight"], params["wte"][:45])
    back, _ = from_hf(to_hf(model_config, params, 50), hf_config(model_config, store.tokenizer), 45)
    assert_same(back["lm_head"], params["lm_head"][:45])
    with pytest.raises(UserError, match="do not belong together"):
        from_hf(tensors, hf_config(model_config, store.tokenizer), 50)


def test_a_tied_head_that_is_another_is_refused(store):
    model_config, params = modern_run("tied", vocab_size=50)
    tensors, hf = to_hf(model_config, params, 50), hf_config(model_config, store.tokenizer)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    assert_same(from_hf(tensors, hf, 50)[0], params)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    with pytest.raises(UserError, match="tie_word_embeddings"):
        from_hf(tensors, hf, 50)


def test_llama_cpps_names_and_layouts(run):
    model_config, params = run
    gguf, hf = gguf_file.tensors(model_config, params, 50), to_hf(model_config, params, 50)
    assert {name for name in gguf if not name.startswith("blk.")} == {
        *("token_embd.weight", "output_norm.weight"),
        *([] if model_config.tie_embeddings else ["output.weight"]),
        *(["rope_freqs.weight"] if len(model_config.rope_scaling) > 1 else []),
    }
    block = {name.split(".")[2] for name in gguf if name.startswith("blk.1.")}
    assert block == {
        *("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"),
        *("ffn_norm", "ffn_gate", "ffn_up", "ffn_down"),
        *(("attn_q_norm", "attn_k_norm") if model_config.qk_norm else ()),
    }
    assert len(hf) == 2 * len(block) + 3 - model_config.tie_embeddings
    assert len(gguf) == len(hf) + (len(model_config.rope_scaling) > 1)
    for theirs, name in (
        *(("attn_v", "self_attn.v_proj"), ("attn_output", "self_attn.o_proj")),
        *(("ffn_gate", "mlp.gate_proj"), ("ffn_down", "mlp.down_proj")),
    ):
        assert_same(gguf[f"blk.1.{theirs}.weight"], hf[f"model.layers.1.{name}.weight"])
    for theirs, name in (("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj")):
        rows = hf[f"model.layers.1.{name}.weight"].reshape(
            -1, model_config.head_dim, gguf["token_embd.weight"].shape[1]
        )
        if not model_config.qk_norm:  # pairs of a Llama are neighbours there
            half = model_config.head_dim // 2
            order = [i + j for i in range(half) for j in (0, half)]
            rows = rows[:, order]
        expected = rows.reshape(-1, rows.shape[-1])
        assert_same(gguf[f"blk.1.{theirs}.weight"], expected)


# What is refused


@pytest.mark.parametrize(
    ("leaves", "words"),
    [
        ({"mlp": "relu2"}, "Qwen3 needs model.mlp = 'swiglu' (is 'relu2')\n"),
        ({"qk_norm": False, "mlp": "gelu"}, "Llama needs model.mlp = 'swiglu' (is 'gelu')\n"),
        (
            {"norm": "layernorm", "bias": True},
            "Qwen3 needs model.norm = 'rmsnorm' (is 'layernorm'), model.bias = False",
        ),
        (
            {"norm": "layernorm", "qk_norm": False, "mlp": "gelu"},
            "GPT-2 needs model.position = 'learned' (is 'rope'), model.n_kv_head = 4 (is 2)\n",
        ),
    ],
)
def test_a_model_without_a_stock_architecture_is_not_exported(leaves, words, store, tmp_path):
    config = modern_config("tied")
    config.model.update(leaves)
    model_config = GPTConfig.from_config(config, 512)
    params = random_params(model_config)
    with pytest.raises(UserError) as error:
        to_hf(model_config, params, 50)
    assert words in f"{error.value}\n"
    assert all(architecture.title in str(error.value) for architecture in ARCHITECTURES)
    make_workdir(tmp_path / "run", config, params, (store.path / TOKENIZER).read_bytes())
    with pytest.raises(UserError, match="cannot be exported"):
        export.export_hf(tmp_path / "run", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_qwen3_that_computes_something_else_is_refused_with_all_its_differences(store):
    hf = hf_config(modern_run("tied", 50)[0], store.tokenizer)
    wrong = {
        "attention_bias": True,
        "use_sliding_window": True,
        "head_dim": 8,
        "hidden_act": "gelu",
        "num_key_value_heads": 3,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        "quantization_config": {"bits": 4},
        "tie_word_embeddings": "yes",
    }
    with pytest.raises(UserError) as error:
        model_settings(hf | wrong)
    message = str(error.value)
    for key in wrong.keys() - {"rope_scaling"}:
        assert f"{key} is" in message or f"{key} 3 does not divide" in message, key
    assert "rope_type is 'yarn', not 'default'" in message
    assert "head_dim is 8, not hidden_size / num_attention_heads = 6" in message
    for key in wrong:
        with pytest.raises(UserError):
            model_settings(hf | {key: wrong[key]})
    for name in QWEN3.keys.values():
        for value in (None, 0, "4", -1, True, [2]):
            if (name, value) != ("num_key_value_heads", None):  # as many as of queries
                with pytest.raises(UserError, match=f"{name} is"):
                    model_settings(hf | {name: value})
    with pytest.raises(UserError, match="GPT-2, Qwen3, Llama, Mistral.*model_type is 'gemma'"):
        model_settings(hf | {"model_type": "gemma"})


def test_the_forms_of_several_versions_are_read(store):
    hf = hf_config(modern_run("tied", 50)[0], store.tokenizer)
    ours = model_settings(hf)
    assert ours["rope_theta"] == 500.0
    del hf["rope_theta"]
    assert model_settings(hf) == ours | {"rope_theta": 10_000.0}
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    newer |= {"layer_types": ["full_attention"] * 2, "sliding_window": None}
    assert model_settings(hf | newer) == ours
    older = {"rope_theta": 500.0, "rope_scaling": None, "sliding_window": 4096}
    assert model_settings(hf | older) == ours
    with pytest.raises(UserError, match="rope_type is 'dynamic'"):
        model_settings(hf | {"rope_scaling": {"type": "dynamic", "factor": 2.0}})
    linear = hf | {"rope_scaling": {"type": "linear", "factor": 2.0}}
    scaled = {"rope_theta": 10_000.0, "rope_scaling": (2.0,)}
    assert model_settings(linear) == ours | scaled
    with pytest.raises(UserError, match=r"rope_scaling has the numbers \(None,\)"):
        model_settings(hf | {"rope_scaling": {"type": "linear"}})
    assert model_settings(hf | {"num_key_value_heads": None})["n_kv_head"] == 4
    absent = {key: value for key, value in hf.items() if key != "tie_word_embeddings"}
    assert not model_settings(absent)["tie_embeddings"]
    del absent["head_dim"]
    with pytest.raises(UserError, match="head_dim is 128"):
        model_settings(absent)


def test_llamas_of_several_kinds(store):
    """The config.json of Llama 2, SmolLM2, Mistral, with their defaults left out, or not."""
    hf = hf_config(modern_run("llama", 50)[0], store.tokenizer)
    ours = model_settings(hf)
    assert (hf["model_type"], ours["norm_eps"], ours["qk_norm"]) == ("llama", 1e-3, False)
    bare = {k: v for k, v in hf.items() if k not in ("head_dim", "attention_bias", "mlp_bias")}
    assert model_settings(bare) == ours
    smol = {"pretraining_tp": 1, "rope_interleaved": False, "rope_scaling": None, "is_llama": True}
    assert model_settings(bare | smol) == ours
    older = {k: v for k, v in bare.items() if k not in ("num_key_value_heads", "rms_norm_eps")}
    assert model_settings(older) == ours | {"n_kv_head": 4, "norm_eps": 1e-6}
    mistral = bare | {"model_type": "mistral", "sliding_window": None}
    assert model_settings(mistral) == ours
    del mistral["sliding_window"]
    for wrong, words in (
        (mistral, "sliding_window is 4096"),
        (bare | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"numbers \(8.0, None"),
        (bare | {"head_dim": 16}, "head_dim is 16, not hidden_size / num_attention_heads = 12"),
        (bare | {"mlp_bias": True}, "mlp_bias is True"),
        (bare | {"attention_bias": True}, "attention_bias is True"),
    ):
        with pytest.raises(UserError, match=words):
            model_settings(wrong)


# GPT-2s of other widths and heads


def test_a_gpt2_with_its_own_head_and_another_hidden_width(store):
    weights, config = hf_fixture()
    config = dataclasses.replace(config, tie_embeddings=False, mlp_dim=28)
    params = random_params(config)  # with biases
    hf, tensors = hf_config(config, store.tokenizer), to_hf(config, params, config.vocab_size)
    assert tensors.keys() == weights.keys() | {"lm_head.weight"}
    assert (hf["n_inner"], hf["tie_word_embeddings"]) == (28, False)
    assert model_settings(hf)["tie_embeddings"] is False and model_settings(hf)["mlp_dim"] == 28
    back, bias = from_hf(tensors, hf, config.vocab_size)
    assert bias
    assert_same(back, params)
    assert GPT2.differences(config) == []


# Files


def test_an_exported_folder_becomes_the_same_run_again(store, tmp_path):
    n_tokens = store.tokenizer.vocab_size
    for name in ("untied", "llama"):
        _, params = modern_run(name, n_tokens)
        workdir, out, back = (tmp_path / f"{name}{i}" for i in range(3))
        make_workdir(workdir, modern_config(name), params, (store.path / TOKENIZER).read_bytes())
        export.export_hf(workdir, out)
        whole = json.loads((out / "config.json").read_text())
        whole["rope_theta"] = int(whole["rope_theta"])  # as Qwen's own files have it
        (out / "config.json").write_text(json.dumps(whole))
        import_hf(out, back)
        before, after = load_run(workdir), load_run(back)
        assert_same(jax.device_get(after.params), params)
        assert before.tokenizer.hash == after.tokenizer.hash
        assert as_imported(before.model_config) == after.model_config
