"""The state of a new run: parameters drawn at random, or another run's (`init_from`)."""

import dataclasses
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs.errors import UserError
from configs.read import read_bytes
from data_pipeline import chat
from data_pipeline.files import differences
from data_pipeline.special_tokens import with_specials
from data_pipeline.token_store import TOKENIZER, Stores
from data_pipeline.tokenizer import MAX_FILE, Tokenizer
from gptjax.inference import load_run
from gptjax.model import GPTConfig, Params
from gptjax.step import StepFunctions, TrainState

_log = logging.getLogger(__name__)
_SHAPE = tuple(
    """
    vocab_size block_size n_layer n_head n_kv_head n_embd bias norm norm_eps position rope_theta
    rope_scaling qk_norm mlp mlp_dim tie_embeddings
    """.split()
)


def initial_state(config: ConfigDict, steps: StepFunctions, store: Stores) -> TrainState:
    """Returns the state before step 1; `init_from` replaces its parameters, and nothing else.

    Raises UserError with all differences if that run's model has another shape or tokenizer.
    """
    state: TrainState = steps.init_state()
    if not config.init_from:
        return state
    _, model_config, params, tokenizer, _step = load_run(Path(config.init_from))
    if _has_markers_of_chat(Path(config.init_from), tokenizer, store.tokenizer):
        params = grown(params, jax.device_get(state.params))
        tokenizer = store.tokenizer
        model_config = dataclasses.replace(model_config, vocab_size=tokenizer.vocab_size)
    if differing := differences(
        description(model_config, tokenizer), description(steps.model_config, store.tokenizer)
    ):
        raise UserError(
            f"init_from = {config.init_from} is another model than this configuration's:\n  - "
            + "\n  - ".join(differing)
            + f"\nUse its configuration (gptjax train workdir:{config.init_from} "
            f"workdir=...) and its tokenizer (tokenizer.file="
            f"{config.init_from}/tokenizer.model)."
        )
    _log.info("The run starts with the parameters of %s.", config.init_from)
    params = jax.device_put(params, steps.state_shardings.params)
    # The moving average starts there, too, in buffers of its own: a step donates the state's.
    ema = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, ema_params=ema)


def _has_markers_of_chat(workdir: Path, tokenizer: Tokenizer, other: Tokenizer) -> bool:
    """Returns whether `other` is the tokenizer of `workdir` with the markers of a chat."""
    if other.hash == tokenizer.hash:
        return False
    model = read_bytes(workdir / TOKENIZER, MAX_FILE)
    return Tokenizer(with_specials(model, chat.MARKERS, str(workdir))).hash == other.hash


def grown(params: Params, new: Params) -> Params:
    """Returns parameters with as many rows for tokens as `new` has.

    An added row is the mean of all others, so that it is as likely as an average token (Hewitt
    2021), plus the row of `new`, which is small and different for each.
    """
    tables = {
        name: np.concatenate([table, table.mean(0, keepdims=True) + new[name][len(table) :]])
        for name, table in jax.device_get(params).items()
        if name in ("wte", "lm_head")
    }
    return {**params, **tables}


def description(model_config: GPTConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """Returns what decides the output of a model besides its parameters, as JSON."""
    shape = {f"model.{name}": getattr(model_config, name) for name in _SHAPE}
    return {**shape, "the tokenizer": tokenizer.hash[:12]}
