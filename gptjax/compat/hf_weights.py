"""Parameters and model settings in the form of Hugging Face's `transformers`, and back.

Only names and layouts differ: layers are separate instead of stacked, and Qwen3's matrices are
[out, in]. The names are in hf_architectures.py.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from configs.errors import UserError
from configs.validate import CONSTRAINTS
from data_pipeline.tokenizer import Tokenizer
from gptjax.compat.hf_architectures import ARCHITECTURES, Architecture, Tensor
from gptjax.model import GPTConfig, Params, gpt

_BY_VOCABULARY = ("wte", "lm_head")  # a row for each token


def architecture_of(model_config: GPTConfig) -> Architecture:
    """Returns the stock architecture that computes the same as a model.

    Raises:
        UserError: there is none; the message lists the differences from each.
    """
    differences = {a: a.differences(model_config) for a in ARCHITECTURES}
    nearest = sorted(differences, key=lambda a: len(differences[a]))
    if not differences[nearest[0]]:
        return nearest[0]
    raise UserError(
        "no stock architecture computes the same as this model, so it cannot be exported:\n  - "
        + "\n  - ".join(f"{a.title} needs {', '.join(differences[a])}" for a in nearest)
    )


def architecture_of_json(hf: Mapping[str, Any]) -> Architecture:
    """Returns the architecture of a config.json; UserError if it is not supported."""
    for architecture in ARCHITECTURES:
        if hf.get("model_type") == architecture.name:
            return architecture
    raise UserError(
        f"only {', '.join(a.title for a in ARCHITECTURES)} models can be imported, but in config"
        f".json model_type is {hf.get('model_type')!r}"
    )


def hf_config(model_config: GPTConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the content of config.json; UserError if no stock architecture fits."""
    architecture = architecture_of(model_config)
    return {
        "architectures": [architecture.hf_class],
        "model_type": architecture.name,
        "vocab_size": tokenizer.vocab_size,
        **{name: getattr(model_config, key) for key, name in architecture.keys.items()},
        **{key: value for key, (value, *_) in architecture.fixed.items() if value is not None},
        "tie_word_embeddings": model_config.tie_embeddings,
        **architecture.extras(model_config),
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.bos_id,  # stands between documents
        "dtype": "float32",
    }


def model_settings(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of `config.model` for a config.json, all but GPT-2's `bias`.

    Raises:
        UserError: gptjax cannot compute the same; the message lists all differences.
    """
    architecture = architecture_of_json(hf)
    hf = architecture.flatten(hf)
    problems = [
        f"{key} is {hf.get(key)!r}, not {next((v for v in values if v is not None), None)!r}"
        for key, values in architecture.fixed.items()
        if hf.get(key) not in values
    ]
    sizes: dict[str, Any] = {key: hf.get(name) for key, name in architecture.keys.items()}
    tied = hf["tie_word_embeddings"]
    if not isinstance(tied, bool):
        problems.append(f"tie_word_embeddings is {tied!r}, not true or false")
    invalid = []
    for key, value in sizes.items():
        types = (int, float) if key in ("rope_theta", "norm_eps") else (int,)
        if type(value) not in types or not 0 < value < math.inf:
            invalid.append(f"{architecture.keys[key]} is {value!r}, not a positive number")
    problems += invalid or _contradictions(architecture, sizes, hf)
    if "rope_theta" in sizes:
        sizes["rope_scaling"] = hf["rope_scaling"]
        holds = CONSTRAINTS["model.rope_scaling"][1]
        if not holds(hf["rope_scaling"]):
            problems.append(f"rope_scaling has the numbers {hf['rope_scaling']!r}")
    if problems:
        raise UserError(
            f"gptjax has no model that computes the same as this {architecture.title}: in "
            f"config.json " + "; ".join(problems)
        )
    return {**architecture.needs, **sizes, "tie_embeddings": tied}


def _contradictions(
    architecture: Architecture, sizes: Mapping[str, Any], hf: Mapping[str, Any]
) -> list[str]:
    names, problems = architecture.keys, []
    n_embd, n_head = sizes["n_embd"], sizes["n_head"]
    n_kv_head = sizes.get("n_kv_head", n_head)
    if n_embd % n_head:
        problems.append(f"{names['n_head']} {n_head} does not divide {names['n_embd']} {n_embd}")
    if n_head % n_kv_head:
        problems.append(f"{names['n_kv_head']} {n_kv_head} does not divide {names['n_head']}")
    if "head_dim" in hf and hf["head_dim"] != n_embd / n_head:
        problems.append(
            f"head_dim is {hf['head_dim']!r}, not {names['n_embd']} / {names['n_head']} = "
            f"{n_embd / n_head:g}"
        )
    return problems


def named_tensors(
    model_config: GPTConfig, params: Params, vocab_size: int
) -> Iterator[tuple[str, str, bool, np.ndarray]]:
    """Yields all parameters, layer by layer; arguments and errors are those of `to_hf`.

    Each as (name in `transformers`, name in llama.cpp, whether it is a matrix [in, out], float32
    array); an embedding is no matrix.
    """
    ours = flatten_dict(params, sep=".")
    for row in architecture_of(model_config).tensors:
        if row.ours == "lm_head" and model_config.tie_embeddings:
            continue
        stacked = _array(row.ours, ours)
        if row.ours in _BY_VOCABULARY:
            stacked = stacked[:vocab_size]
        parts = [stacked]
        if len(row.hf) > 1:  # queries, keys, values
            widths = np.array([model_config.n_head, model_config.n_kv_head]) * model_config.head_dim
            parts = np.split(stacked, np.cumsum(widths), axis=-1)
        is_matrix = row.ours.endswith(".kernel")
        for hf, gguf, part in zip(row.hf, row.gguf, parts, strict=True):
            for i, array in enumerate(part if "{}" in hf else [part]):
                yield hf.format(i), gguf.format(i), is_matrix, array


def _array(name: str, arrays: Mapping[str, Any]) -> np.ndarray:
    """Returns one of our arrays; zeros for a bias that the model lacks."""
    module, _, key = name.rpartition(".")
    if key != "bias" or name in arrays:
        return np.asarray(arrays[name], np.float32)
    scale = arrays.get(f"{module}.scale")
    like = arrays[f"{module}.kernel"][..., 0, :] if scale is None else scale
    return np.zeros_like(like, np.float32)


def to_hf(model_config: GPTConfig, params: Params, vocab_size: int) -> dict[str, np.ndarray]:
    """Returns float32 tensors by Hugging Face's names, without a tied head.

    Rows of the embedding beyond `vocab_size` are padding, and dropped.

    Raises:
        UserError: no stock architecture computes the same as the model.
    """
    transpose = architecture_of(model_config).hf_transposes
    return {
        hf: np.ascontiguousarray(array.T if is_matrix and transpose else array)
        for hf, _, is_matrix, array in named_tensors(model_config, params, vocab_size)
    }


def require_shapes(
    tensors: Mapping[str, Any], hf: Mapping[str, Any], model_config: GPTConfig
) -> None:
    """Raises UserError unless the tensors of a file have the shapes of a model; reads none.

    `model_config` has biases where its architecture can. An embedding can have more rows.
    """
    architecture = architecture_of_json(hf)
    prefix = architecture.hf_prefix
    padded = {row.hf[0] for row in architecture.tensors if row.ours in _BY_VOCABULARY}
    names = {name.removeprefix(prefix): name for name in tensors}
    if len(names) < model_config.n_layer:
        raise UserError(
            f"config.json has {model_config.n_layer:,} layers, but there are {len(names):,} tensors"
        )
    shapes = jax.eval_shape(lambda: gpt.init(model_config, jax.random.key(0)))
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)  # no memory
    problems = []
    for full, _, is_matrix, array in named_tensors(model_config, zeros, model_config.vocab_size):
        name = full.removeprefix(prefix)
        if name in names:  # else from_hf says so
            transposed = is_matrix and architecture.hf_transposes
            expected = array.shape[::-1] if transposed else array.shape
            shape = np.shape(tensors[names[name]])
            is_padded = full in padded and shape[1:] == expected[1:] and shape[0] > expected[0]
            if shape != expected and not is_padded:
                problems.append(f"{name} is {shape}, not {expected}")
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(f"config.json and weights disagree: {'; '.join(problems[:4])}{more}")


def from_hf(
    tensors: Mapping[str, Any], hf: Mapping[str, Any], vocab_size: int
) -> tuple[Params, bool]:
    """Returns (parameters, whether they have biases); biases that are all zero are dropped.

    `tensors` have any dtype and Hugging Face's names, with or without their prefix; those that are
    no parameters (causal masks, the tied head) are ignored. `hf` is the content of config.json.
    Rows of the embedding beyond `vocab_size`, the tokens of the tokenizer, are dropped.

    Raises:
        UserError: as in `model_settings`; or a tensor is missing, layers differ in shape, or a tied
            head is not the embedding.
    """
    architecture, model = architecture_of_json(hf), model_settings(hf)
    prefix = architecture.hf_prefix
    names = {name.removeprefix(prefix): name for name in tensors}

    def tensor(name: str) -> np.ndarray:
        name = name.removeprefix(prefix)
        if name not in names:
            raise UserError(f"the checkpoint has no tensor {name}: is it a {architecture.title}?")
        return np.asarray(tensors[names[name]], np.float32)

    def layer(row: Tensor, i: int) -> np.ndarray:
        transpose = architecture.hf_transposes and row.ours.endswith(".kernel")
        parts = [tensor(name.format(i)) for name in row.hf]
        return np.concatenate([part.T if transpose else part for part in parts], axis=-1)

    wte = tensor(architecture.tensors[0].hf[0])
    if len(wte) < vocab_size:
        raise UserError(
            f"the checkpoint embeds {len(wte):,} tokens but its tokenizer has {vocab_size:,}: they "
            f"do not belong together"
        )
    head = tensors[names["lm_head.weight"]] if "lm_head.weight" in names else wte
    if model["tie_embeddings"] and not np.array_equal(head, wte):
        raise UserError(
            "config.json says that the head is the embedding (tie_word_embeddings), but the "
            "checkpoint has a different one (lm_head.weight)"
        )
    arrays = {}
    for row in architecture.tensors:
        if row.ours == "lm_head" and model["tie_embeddings"]:
            continue
        layers = range(model["n_layer"] if "{}" in row.hf[0] else 1)
        try:
            stacked = np.stack([layer(row, i) for i in layers])
        except ValueError as error:
            raise UserError(f"the checkpoint's tensors {', '.join(row.hf)}: {error}") from error
        if "{}" not in row.hf[0]:
            stacked = stacked[0]
        arrays[row.ours] = stacked[:vocab_size] if row.ours in _BY_VOCABULARY else stacked
    has_bias = any(array.any() for name, array in arrays.items() if name.endswith(".bias"))
    kept = {name: a for name, a in arrays.items() if has_bias or not name.endswith(".bias")}
    return unflatten_dict(kept, sep="."), has_bias
