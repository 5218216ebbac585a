"""Our parameters and model shape as those of Hugging Face's GPT2LMHeadModel, and back.

Both multiply from the right by matrices [in, out], so that nothing is transposed: only names
differ, and blocks stand apart instead of stacked. GPT-2 always has biases; a model without them has
zeros there, which compute the same.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from configs.flags import UserError
from data_pipeline.tokenizer import Tokenizer
from gptjax.model import LAYER_NORM_EPS, GPTConfig, Params

_PREFIX = "transformer."
_MODULES = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")

# What GPT-2's config.json may say of the arithmetic, beside the shape: else logits would be others.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", None),  # absent: gelu_new
    "layer_norm_epsilon": (LAYER_NORM_EPS, None),
    "scale_attn_weights": (True, None),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "tie_word_embeddings": (True, None),
    "add_cross_attention": (False, None),
}


def hf_config(config: GPTConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the content of config.json."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": tokenizer.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,  # 4 n_embd
        "activation_function": "gelu_new",  # GELU in its tanh form
        "layer_norm_epsilon": LAYER_NORM_EPS,
        "tie_word_embeddings": True,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "resid_pdrop": config.dropout,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.bos_id,  # stands between documents
        "dtype": "float32",
    }


def shape(hf: Mapping[str, Any]) -> dict[str, int]:
    """Returns the leaves of `config.model` that a config.json decides, `bias` excepted.

    Raises:
        UserError: it is of a model that computes something else; all differences are told.
    """
    problems = [
        f"{key} is {hf.get(key)!r}, not {values[0]!r}"
        for key, values in _REQUIRED.items()
        if hf.get(key) not in values
    ]
    ours = {"block_size": "n_positions", "n_embd": "n_embd", "n_layer": "n_layer"}
    ours["n_head"] = "n_head"
    for name in ours.values():
        if not isinstance(hf.get(name), int) or hf[name] < 1:
            problems.append(f"{name} is {hf.get(name)!r}, not a positive number")
    if not problems:
        if hf.get("n_inner") not in (None, 4 * hf["n_embd"]):
            problems.append(f"n_inner is {hf['n_inner']}, not 4 n_embd")
        if hf["n_embd"] % hf["n_head"]:
            problems.append(f"n_head {hf['n_head']} does not divide n_embd {hf['n_embd']}")
    if problems:
        raise UserError(
            "only GPT-2 models can be imported, and in config.json " + "; ".join(problems)
        )
    return {key: hf[name] for key, name in ours.items()}


def _modules(n_layer: int) -> Iterator[tuple[str, str, tuple[str, ...], range | None]]:
    """Yields name (with {} for the layer), name of its weight, path and layers of each module."""
    for name in _MODULES:
        weight = "scale" if name.startswith("ln") else "kernel"
        yield f"{_PREFIX}h.{{}}.{name}", weight, ("blocks", *name.split(".")), range(n_layer)
    yield f"{_PREFIX}ln_f", "scale", ("ln_f",), None


def to_hf(config: GPTConfig, params: Params, vocab_size: int) -> dict[str, np.ndarray]:
    """Returns float32 tensors by Hugging Face's names; the head is tied, so it has none.

    Args:
        config: the model's shape.
        params: its parameters.
        vocab_size: rows of the embedding that stand for tokens: others are padding, and dropped.
    """
    tensors = {f"{_PREFIX}wte.weight": np.asarray(params["wte"], np.float32)[:vocab_size]}
    tensors[f"{_PREFIX}wpe.weight"] = np.asarray(params["wpe"], np.float32)
    for name, weight, path, layers in _modules(config.n_layer):
        module = params
        for key in path:
            module = module[key]
        array = np.asarray(module[weight], np.float32)
        bias_shape = array.shape if weight == "scale" else (*array.shape[:-2], array.shape[-1])
        bias = np.asarray(module["bias"]) if config.bias else np.zeros(bias_shape, np.float32)
        for kind, stacked in (("weight", array), ("bias", bias)):
            if layers is None:
                tensors[f"{name}.{kind}"] = stacked
            else:
                tensors |= {f"{name.format(i)}.{kind}": stacked[i] for i in layers}
    return tensors


def from_hf(tensors: Mapping[str, Any], n_layer: int, vocab_size: int) -> tuple[Params, bool]:
    """Returns (parameters, whether they have biases): not where all of them are zero.

    Args:
        tensors: by Hugging Face's names, with "transformer." in front or, as in the first
            checkpoints, without; any dtype. What is no parameter (causal masks, the tied head) is
            left.
        n_layer: number of blocks.
        vocab_size: tokens of the tokenizer; further rows of the embedding are dropped.

    Raises:
        UserError: a tensor is missing, or the head is not tied.
    """
    found = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}

    def tensor(name: str) -> np.ndarray:
        name = name.removeprefix(_PREFIX)
        if name not in found:
            raise UserError(f"the checkpoint has no tensor {name}: is it a GPT-2?")
        return np.asarray(found[name], np.float32)

    wte = tensor("wte.weight")
    if "lm_head.weight" in found and not np.array_equal(tensor("lm_head.weight"), wte):
        raise UserError("the checkpoint's head is not its embedding (lm_head.weight): ours is tied")
    if len(wte) < vocab_size:
        raise UserError(
            f"the checkpoint embeds {len(wte):,} tokens and the tokenizer beside it has "
            f"{vocab_size:,}: they do not belong together"
        )
    params: Params = {"wte": wte[:vocab_size], "wpe": tensor("wpe.weight"), "blocks": {}}
    biased = []
    for name, weight, path, layers in _modules(n_layer):
        module = params
        for key in path:
            module = module.setdefault(key, {})
        for kind, key in (("weight", weight), ("bias", "bias")):
            names = [f"{name.format(i)}.{kind}" for i in layers or [0]]
            arrays = [tensor(n) for n in names]
            module[key] = arrays[0] if layers is None else np.stack(arrays)
        biased.append(module)
    bias = any(module["bias"].any() for module in biased)
    if not bias:
        for module in biased:
            del module["bias"]
    return params, bias
