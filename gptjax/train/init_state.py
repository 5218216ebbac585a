"""What a new run starts with: parameters drawn at random, or another run's (`init_from`)."""

import dataclasses
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from configs.errors import UserError
from data_pipeline.token_store import TokenStore
from gptjax.inference.load import load_run
from gptjax.step.train_state import TrainState
from gptjax.step.train_step import StepFunctions

_log = logging.getLogger(__name__)
_SHAPE = tuple(
    """
    vocab_size block_size n_layer n_head kv_heads n_embd bias norm position rope_theta qk_norm mlp
    mlp_width tie_embeddings
    """.split()
)


def initial_state(config: ConfigDict, steps: StepFunctions, store: TokenStore) -> TrainState:
    """Returns the state before step 1; with `init_from`, only its parameters are another run's.

    Raises:
        UserError: that run's model has another shape or tokenizer; all differences are told.
    """
    state: TrainState = steps.init_state()
    if not config.init_from:
        return state
    _, model_config, params, tokenizer, _step = load_run(Path(config.init_from))
    pairs = [
        (f"model.{key}", getattr(model_config, key), getattr(steps.model_config, key))
        for key in _SHAPE
    ]
    pairs.append(("the tokenizer", tokenizer.hash[:12], store.tokenizer.hash[:12]))
    if found := [
        f"{name}: {there} there, {here} here" for name, there, here in pairs if there != here
    ]:
        raise UserError(
            f"init_from = {config.init_from} is another model than this configuration's:\n  - "
            + "\n  - ".join(found)
            + f"\nTake its configuration (--config=configs/workdir.py:{config.init_from} "
            f"--config.workdir=...) and its tokenizer (--config.tokenizer.file="
            f"{config.init_from}/tokenizer.model)."
        )
    _log.info("The run starts with the parameters of %s.", config.init_from)
    params = jax.device_put(params, steps.state_shardings.params)
    # The average begins with them, too: in arrays of its own, for a step takes the state's over.
    ema = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, ema_params=ema)
