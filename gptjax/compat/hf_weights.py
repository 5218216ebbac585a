"""Our parameters and model shape as those of Hugging Face's `transformers`, and back.

Only names and layouts differ: blocks stand apart instead of stacked, and Qwen3's matrices are
[out, in]. Which of the stock architectures a model is, and what they call its arrays, is in
`gptjax/compat/hf_architectures.py`.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from configs.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from gptjax.compat.hf_architectures import ARCHITECTURES, Architecture, Tensor, leaf
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import Params

_BY_VOCABULARY = ("wte", "lm_head")  # a row for each token


def of_model(model_config: GPTConfig) -> Architecture:
    """Returns the architecture that computes what a model of ours does.

    Raises:
        UserError: there is none; it names the keys that stand in the way of each.
    """
    found = {a: a.differences(model_config) for a in ARCHITECTURES}
    for architecture, differences in found.items():
        if not differences:
            return architecture
    nearest = sorted(found, key=lambda a: len(found[a]))
    raise UserError(
        "no stock architecture computes what this model does, so that it cannot be exported:\n  - "
        + "\n  - ".join(f"{a.title} needs {', '.join(found[a])}" for a in nearest)
    )


def of_config_json(hf: Mapping[str, Any]) -> Architecture:
    """Returns the architecture that a config.json names; UserError if it is none of ours."""
    for architecture in ARCHITECTURES:
        if hf.get("model_type") == architecture.name:
            return architecture
    raise UserError(
        f"only {' and '.join(a.title for a in ARCHITECTURES)} models can be imported, and in "
        f"config.json model_type is {hf.get('model_type')!r}"
    )


def hf_config(model_config: GPTConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the content of config.json; UserError if no stock architecture fits."""
    architecture = of_model(model_config)
    fixed = {key: values[0] for key, values in architecture.fixed.items()}
    return {
        "architectures": [architecture.hf_class],
        "model_type": architecture.name,
        "vocab_size": tokenizer.vocab_size,
        **{name: leaf(model_config, key) for key, name in architecture.keys.items()},
        **{key: value for key, value in fixed.items() if value is not None},
        "tie_word_embeddings": model_config.tie_embeddings,
        **architecture.extras(model_config),
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.bos_id,  # stands between documents
        "dtype": "float32",
    }


def shape(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of `config.model` that a config.json decides; GPT-2's `bias` it does not.

    Raises:
        UserError: it is of a model that computes something else; all differences are told.
    """
    architecture = of_config_json(hf)
    hf = architecture.flatten(hf)
    problems = [
        f"{key} is {hf.get(key)!r}, not {next((v for v in values if v is not None), None)!r}"
        for key, values in architecture.fixed.items()
        if hf.get(key) not in values
    ]
    found: dict[str, Any] = {key: hf.get(name) for key, name in architecture.keys.items()}
    tied = hf.get("tie_word_embeddings", architecture.tied_by_default)
    if not isinstance(tied, bool):
        problems.append(f"tie_word_embeddings is {tied!r}, not true or false")
    wrong = []
    for key, value in found.items():
        kinds = (int, float) if key == "rope_theta" else (int,)
        if type(value) not in kinds or not 0 < value < math.inf:
            wrong.append(f"{architecture.keys[key]} is {value!r}, not a positive number")
    if not wrong:
        wrong = _arithmetic(architecture, found, hf)
    if problems := problems + wrong:
        raise UserError(
            f"this {architecture.title} computes something else than any model of ours: in "
            f"config.json " + "; ".join(problems)
        )
    return {**architecture.needs, **found, "tie_embeddings": tied}


def _arithmetic(
    architecture: Architecture, found: Mapping[str, Any], hf: Mapping[str, Any]
) -> list[str]:
    """Returns which numbers of a config.json do not go together."""
    names, problems = architecture.keys, []
    n_embd, n_head = found["n_embd"], found["n_head"]
    n_kv_head = found.get("n_kv_head", n_head)
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


class Named(NamedTuple):
    """One tensor of one layer, by the names of others."""

    hf: str
    gguf: str
    is_matrix: bool  # in our layout [in, out]; embeddings are none
    array: np.ndarray  # float32


def named(model_config: GPTConfig, params: Params, vocab_size: int) -> Iterator[Named]:
    """Yields all parameters; arguments and errors are those of `to_hf`."""
    for row in of_model(model_config).tensors:
        if row.ours == "lm_head" and model_config.tie_embeddings:
            continue
        stacked = _array(row, params)
        if row.ours in _BY_VOCABULARY:
            stacked = stacked[:vocab_size]
        parts = [stacked]
        if len(row.hf) > 1:  # queries, keys, values
            widths = np.array([model_config.n_head, model_config.kv_heads]) * model_config.head_dim
            parts = np.split(stacked, np.cumsum(widths), axis=-1)
        is_matrix = row.ours.endswith(".kernel")
        for hf, gguf, part in zip(row.hf, row.gguf, parts, strict=True):
            if "{}" not in hf:
                yield Named(hf, gguf, is_matrix, part)
                continue
            for i, array in enumerate(part):
                yield Named(hf.format(i), gguf.format(i), is_matrix, array)


def _array(row: Tensor, params: Params) -> np.ndarray:
    """Returns one of our arrays; of a bias that the model does not have, zeros."""
    *path, key = row.ours.split(".")
    module = functools.reduce(lambda at, name: at[name], path, params)
    if key != "bias" or key in module:
        return np.asarray(module[key], np.float32)
    if "scale" in module:
        return np.zeros_like(module["scale"], np.float32)
    return np.zeros_like(module["kernel"][..., 0, :], np.float32)


def to_hf(model_config: GPTConfig, params: Params, vocab_size: int) -> dict[str, np.ndarray]:
    """Returns float32 tensors by Hugging Face's names; a tied head has none.

    Args:
        config: the model's shape.
        params: its parameters.
        vocab_size: rows of the embedding that stand for tokens: others are padding, and dropped.

    Raises:
        UserError: no stock architecture computes what the model does.
    """
    transpose = of_model(model_config).hf_transposes
    return {
        hf: np.ascontiguousarray(array.T if is_matrix and transpose else array)
        for hf, _, is_matrix, array in named(model_config, params, vocab_size)
    }


def from_hf(
    tensors: Mapping[str, Any], hf: Mapping[str, Any], vocab_size: int
) -> tuple[Params, bool]:
    """Returns (parameters, whether they have biases): not where all of them are zero.

    Args:
        tensors: by Hugging Face's names, with "transformer." or "model." in front or, as in the
            first checkpoints, without; any dtype. What is no parameter (causal masks, the tied
            head) is left.
        hf: the content of config.json.
        vocab_size: tokens of the tokenizer; further rows of the embedding are dropped.

    Raises:
        UserError: as of `shape`; or a tensor is missing, layers differ in shape, or a tied head is
            not the embedding.
    """
    architecture, model = of_config_json(hf), shape(hf)
    prefix = architecture.hf_prefix
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}

    def tensor(name: str) -> np.ndarray:
        name = name.removeprefix(prefix)
        if name not in found:
            raise UserError(f"the checkpoint has no tensor {name}: is it a {architecture.title}?")
        return np.asarray(found[name], np.float32)

    def layer(row: Tensor, i: int) -> np.ndarray:
        transpose = architecture.hf_transposes and row.ours.endswith(".kernel")
        parts = [tensor(name.format(i)) for name in row.hf]
        return np.concatenate([part.T if transpose else part for part in parts], axis=-1)

    wte = tensor(architecture.tensors[0].hf[0])
    if len(wte) < vocab_size:
        raise UserError(
            f"the checkpoint embeds {len(wte):,} tokens and the tokenizer beside it has "
            f"{vocab_size:,}: they do not belong together"
        )
    if model["tie_embeddings"] and not np.array_equal(found.get("lm_head.weight", wte), wte):
        raise UserError(
            "config.json says that the head is the embedding (tie_word_embeddings), and the "
            "checkpoint has another (lm_head.weight)"
        )
    params: Params = {}
    for row in architecture.tensors:
        if row.ours == "lm_head" and model["tie_embeddings"]:
            continue
        *path, key = row.ours.split(".")
        layers = range(model["n_layer"] if "{}" in row.hf[0] else 1)
        try:
            stacked = np.stack([layer(row, i) for i in layers])
        except ValueError as error:
            raise UserError(f"the checkpoint's tensors {', '.join(row.hf)}: {error}") from error
        if "{}" not in row.hf[0]:
            stacked = stacked[0]
        if row.ours in _BY_VOCABULARY:
            stacked = stacked[:vocab_size]
        functools.reduce(lambda at, name: at.setdefault(name, {}), path, params)[key] = stacked
    biased = [module for module in _modules(params) if "bias" in module]
    bias = any(module["bias"].any() for module in biased)
    if not bias:
        for module in biased:
            del module["bias"]
    return params, bias


def _modules(params: Params) -> Iterator[Params]:
    yield params
    for value in params.values():
        if isinstance(value, dict):
            yield from _modules(value)
