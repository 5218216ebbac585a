"""Tables of the stock architectures that a gptjax model can be exactly: GPT-2, Qwen3, Llama.

A table lists what the architecture requires of a model, the keys of its config.json, and the names
of our arrays in Hugging Face's `transformers` and in llama.cpp.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from gptjax.model import GPTConfig


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The names of one of our arrays, which stacks all layers where other names have {}."""

    ours: str  # keys of the parameters, joined by dots
    hf: tuple[str, ...]  # several tensors are concatenated along our columns
    gguf: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Architecture:
    """Everything needed to export a model as this architecture, and to import it."""

    title: str
    name: str  # `model_type` in config.json, `general.architecture` in GGUF
    hf_class: str
    hf_prefix: str  # of tensor names; missing in the first GPT-2 checkpoints
    hf_transposes: bool  # matrices are [out, in]; ours, and GPT-2's, are [in, out]
    needs: Mapping[str, Any]  # required leaves of `config.model`
    keys: Mapping[str, str]  # leaf of `config.model` -> key of config.json
    # Values of config.json with which it computes the same logits. The first is written; None,
    # which is never written, stands for an absent key.
    fixed: Mapping[str, tuple[Any, ...]]
    extras: Callable[[GPTConfig], dict[str, Any]]  # further keys of config.json
    flatten: Callable[[Mapping[str, Any]], Mapping[str, Any]]  # config.json in the form of `fixed`
    tensors: tuple[Tensor, ...]
    # In GGUF, a pair that is rotated are neighbours in queries and keys, not halves of a head.
    gguf_pairs: bool = False

    def differences(self, model_config: GPTConfig) -> list[str]:
        """Returns the settings in which a model differs from this architecture."""
        needs = dict(self.needs)
        if "n_kv_head" not in self.keys:
            needs["n_kv_head"] = model_config.n_head
        return [
            f"model.{key} = {value!r} (is {getattr(model_config, key)!r})"
            for key, value in needs.items()
            if getattr(model_config, key) != value
        ]


def _tensors(
    layer: str, modules: Mapping[str, tuple[str, str]], *, biases: bool
) -> tuple[Tensor, ...]:
    """Returns the weights of modules and their biases; {} in a module's name stands for `layer`."""
    tensors = []
    for ours, (hf, gguf) in modules.items():
        arrays = {"weight": ours}
        if biases and "." in ours:  # never absent there; zeros compute the same
            arrays["bias"] = ours.rpartition(".")[0] + ".bias"
        for kind, name in arrays.items():
            hf_names = tuple(f"{x}.{kind}" for x in hf.replace("{}", layer).split())
            gguf_names = tuple(f"{x}.{kind}" for x in gguf.replace("{}", "blk.{}").split())
            tensors.append(Tensor(name, hf_names, gguf_names))
    return tuple(tensors)


def _flat_gpt2(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    width = hf.get("n_embd")
    default = 4 * width if isinstance(width, int) else None
    n_inner = default if hf.get("n_inner") is None else hf["n_inner"]
    defaults = {"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5}
    return {**defaults, **hf, "n_inner": n_inner}


GPT2 = Architecture(
    title="GPT-2",
    name="gpt2",
    hf_class="GPT2LMHeadModel",
    hf_prefix="transformer.",
    hf_transposes=False,
    needs={"norm": "layernorm", "position": "learned", "qk_norm": False, "mlp": "gelu"},
    keys={
        "block_size": "n_positions",
        "n_embd": "n_embd",
        "n_layer": "n_layer",
        "n_head": "n_head",
        "mlp_dim": "n_inner",
        "norm_eps": "layer_norm_epsilon",
    },
    fixed={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", None),  # GELU in its tanh form
        "scale_attn_weights": (True, None),
        "scale_attn_by_inverse_layer_idx": (False, None),
        "add_cross_attention": (False, None),
        "quantization_config": (None,),
    },
    extras=lambda config: {
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "resid_pdrop": config.dropout,
    },
    flatten=_flat_gpt2,
    tensors=_tensors(
        "transformer.h.{}",
        {
            "wte": ("transformer.wte", "token_embd"),
            "wpe": ("transformer.wpe", "position_embd"),
            "lm_head": ("lm_head", "output"),
            "blocks.ln_1.scale": ("{}.ln_1", "{}.attn_norm"),
            "blocks.attn.c_attn.kernel": ("{}.attn.c_attn", "{}.attn_qkv"),
            "blocks.attn.c_proj.kernel": ("{}.attn.c_proj", "{}.attn_output"),
            "blocks.ln_2.scale": ("{}.ln_2", "{}.ffn_norm"),
            "blocks.mlp.c_fc.kernel": ("{}.mlp.c_fc", "{}.ffn_up"),
            "blocks.mlp.c_proj.kernel": ("{}.mlp.c_proj", "{}.ffn_down"),
            "ln_f.scale": ("transformer.ln_f", "output_norm"),
        },
        biases=True,
    ),
)


ROPE_SCALINGS = {  # rope_type: the numbers of model.rope_scaling
    "linear": ("factor",),
    "llama3": (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    ),
}


def _rotary(config: GPTConfig) -> dict[str, Any]:
    """Returns the keys of config.json that follow from others, and how positions are scaled."""
    keys: dict[str, Any] = {"head_dim": config.head_dim}
    for kind, names in ROPE_SCALINGS.items():
        if len(names) == len(config.rope_scaling):
            numbers = dict(zip(names, config.rope_scaling, strict=True))
            if kind == "llama3":
                numbers["original_max_position_embeddings"] = int(config.rope_scaling[-1])
            keys["rope_scaling"] = {"rope_type": kind, **numbers}
    return keys


def _flat(hf: Mapping[str, Any], defaults: Mapping[str, Any]) -> Mapping[str, Any]:
    """Unifies the forms of several versions of `transformers`, and fills defaults in.

    Positions: `rope_theta` beside `rope_scaling`, or `rope_parameters` with both.
    """
    hf = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6, **defaults, **hf}
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        rope = {"rope_type": rope}
    layers, n_head = hf.get("layer_types"), hf.get("num_attention_heads")
    return {
        **hf,
        "num_key_value_heads": n_head
        if hf["num_key_value_heads"] is None
        else hf["num_key_value_heads"],
        "rope_theta": rope.get("rope_theta", hf.get("rope_theta", 10_000.0)),
        "rope_type": (kind := rope.get("rope_type", rope.get("type"))),
        "rope_scaling": tuple(rope.get(key) for key in ROPE_SCALINGS.get(str(kind), ())),
        "layer_types": sorted(set(map(str, layers))) if isinstance(layers, list) else layers,
    }


def _head_dim(hf: Mapping[str, Any]) -> Any:
    """Returns the width of heads, which a config.json can leave out."""
    width, n_head = hf.get("hidden_size"), hf.get("num_attention_heads")
    if hf.get("head_dim") is None and isinstance(width, int) and isinstance(n_head, int) and n_head:
        return width / n_head
    return hf.get("head_dim")


QWEN3 = Architecture(
    title="Qwen3",
    name="qwen3",
    hf_class="Qwen3ForCausalLM",
    hf_prefix="model.",
    hf_transposes=True,
    needs={"norm": "rmsnorm", "position": "rope", "qk_norm": True, "mlp": "swiglu", "bias": False},
    keys={
        "block_size": "max_position_embeddings",
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_kv_head": "num_key_value_heads",
        "mlp_dim": "intermediate_size",
        "rope_theta": "rope_theta",
        "norm_eps": "rms_norm_eps",
    },
    fixed={
        "hidden_act": ("silu", None),
        "attention_bias": (False, None),
        "use_sliding_window": (False, None),
        "layer_types": (None, ["full_attention"]),
        "rope_type": (None, "default", *ROPE_SCALINGS),
        "quantization_config": (None,),
    },
    extras=_rotary,
    flatten=lambda hf: _flat(hf, {"head_dim": 128, "num_key_value_heads": 32}),
    tensors=_tensors(
        "model.layers.{}",
        {
            "wte": ("model.embed_tokens", "token_embd"),
            "lm_head": ("lm_head", "output"),
            "blocks.ln_1.scale": ("{}.input_layernorm", "{}.attn_norm"),
            "blocks.attn.c_attn.kernel": (
                "{}.self_attn.q_proj {}.self_attn.k_proj {}.self_attn.v_proj",
                "{}.attn_q {}.attn_k {}.attn_v",
            ),
            "blocks.attn.q_norm.scale": ("{}.self_attn.q_norm", "{}.attn_q_norm"),
            "blocks.attn.k_norm.scale": ("{}.self_attn.k_norm", "{}.attn_k_norm"),
            "blocks.attn.c_proj.kernel": ("{}.self_attn.o_proj", "{}.attn_output"),
            "blocks.ln_2.scale": ("{}.post_attention_layernorm", "{}.ffn_norm"),
            "blocks.mlp.c_gate.kernel": ("{}.mlp.gate_proj", "{}.ffn_gate"),
            "blocks.mlp.c_fc.kernel": ("{}.mlp.up_proj", "{}.ffn_up"),
            "blocks.mlp.c_proj.kernel": ("{}.mlp.down_proj", "{}.ffn_down"),
            "ln_f.scale": ("model.norm", "output_norm"),
        },
        biases=False,
    ),
)

LLAMA = dataclasses.replace(
    QWEN3,
    title="Llama",
    name="llama",
    hf_class="LlamaForCausalLM",
    needs={**QWEN3.needs, "qk_norm": False},
    fixed={
        "hidden_act": ("silu", None),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "layer_types": (None, ["full_attention"]),
        "rope_type": (None, "default", *ROPE_SCALINGS),
        "quantization_config": (None,),
    },
    flatten=lambda hf: _flat(
        {**hf, "head_dim": _head_dim(hf)},
        {"num_key_value_heads": None, "max_position_embeddings": 2048},
    ),
    gguf_pairs=True,
    tensors=tuple(row for row in QWEN3.tensors if "_norm." not in row.ours),
)

MISTRAL = dataclasses.replace(  # imported only: it is a Llama
    LLAMA,
    title="Mistral",
    name="mistral",
    hf_class="MistralForCausalLM",
    fixed={**LLAMA.fixed, "sliding_window": (None,)},
    flatten=lambda hf: _flat(
        {"sliding_window": 4096, **hf, "head_dim": _head_dim(hf)},
        {"num_key_value_heads": 8, "max_position_embeddings": 4096 * 32},
    ),
)

ARCHITECTURES = (GPT2, QWEN3, LLAMA, MISTRAL)
