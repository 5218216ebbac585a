"""Hugging Face's GPT-2: the fixture's shape and parameters in our layout."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from helpers import tiny_gpt

from gptjax.model import gpt
from gptjax.model.config import GPTConfig

FIXTURE = Path(__file__).parent / "fixtures" / "gpt2_tiny.npz"


def gpt_config(hparams: Mapping[str, int], *, bias: bool) -> GPTConfig:
    return tiny_gpt(
        vocab_size=int(hparams["vocab_size"]),
        block_size=int(hparams["n_positions"]),
        n_layer=int(hparams["n_layer"]),
        n_head=int(hparams["n_head"]),
        n_embd=int(hparams["n_embd"]),
        bias=bias,
    )


def from_hf(hf: Mapping[str, np.ndarray], model_config: GPTConfig) -> gpt.Params:
    """Returns our parameters, or gradients, of Hugging Face's: same matrices, layers stacked."""
    biases = ("bias",) if model_config.bias else ()

    def module(name: str, weight: str, layers: range | None = None) -> gpt.Params:
        def leaf(kind: str) -> np.ndarray:
            if layers is None:
                return hf[f"transformer.{name}.{kind}"]
            return np.stack([hf[f"transformer.h.{i}.{name}.{kind}"] for i in layers])

        return {weight: leaf("weight")} | {bias: leaf(bias) for bias in biases}

    layers = range(model_config.n_layer)
    return {
        "wte": hf["transformer.wte.weight"],
        "wpe": hf["transformer.wpe.weight"],
        "blocks": {
            "ln_1": module("ln_1", "scale", layers),
            "attn": {
                "c_attn": module("attn.c_attn", "kernel", layers),
                "c_proj": module("attn.c_proj", "kernel", layers),
            },
            "ln_2": module("ln_2", "scale", layers),
            "mlp": {
                "c_fc": module("mlp.c_fc", "kernel", layers),
                "c_proj": module("mlp.c_proj", "kernel", layers),
            },
        },
        "ln_f": module("ln_f", "scale"),
    }
