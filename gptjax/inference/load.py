"""What a finished run left: its configuration, its tokenizer and its best parameters."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from configs.errors import UserError
from data_pipeline.token_store import TOKENIZER
from data_pipeline.tokenizer import Tokenizer
from gptjax.checkpoint import manager, storage
from gptjax.common.workdir import CHECKPOINTS, load_config
from gptjax.model import gpt
from gptjax.model.config import GPTConfig

_log = logging.getLogger(__name__)


class LoadedModel(NamedTuple):
    """A model with what is needed to use it."""

    config: ConfigDict
    model_config: GPTConfig
    params: Any
    tokenizer: Tokenizer
    step: int  # optimizer updates behind the parameters


def load_run(workdir: Path) -> LoadedModel:
    """Returns the best checkpoint of a run, by val loss, or else the newest, on one device.

    Raises:
        UserError: if the folder is no workdir or holds no checkpoint.
    """
    config = load_config(workdir)
    tokenizer = Tokenizer.load(workdir / TOKENIZER)
    model_config = GPTConfig.from_config(config, tokenizer.vocab_size)
    shapes = jax.eval_shape(lambda: gpt.init(model_config, jax.random.key(0)))
    params, step = restore_params(workdir, shapes)
    return LoadedModel(config, model_config, params, tokenizer, step)


def restore_params(workdir: Path, shapes: Any) -> tuple[Any, int]:
    """Returns (parameters, step) of the best checkpoint by val loss, or else the newest.

    Where the run kept a moving average of its weights, of which the val losses are, that is
    returned. Reads only, also while a run writes: damaged checkpoints are logged and the next best
    is used.

    Args:
        workdir: a run's folder.
        shapes: tree of ShapeDtypeStructs of the parameters.

    Raises:
        UserError: if there is no good checkpoint.
    """
    folder = workdir / CHECKPOINTS
    if not folder.is_dir():
        raise UserError(f"{workdir} has no checkpoints yet: train first, with gptjax.main.")
    found = storage.list_steps(folder)
    losses = {step: storage.val_loss(folder / str(step)) for step in found}
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_device), shapes
    )
    for step in sorted(found, key=lambda s: (losses[s] is None, losses[s] or 0.0, -s)):
        try:
            kept = storage.read_meta(folder / str(step))["arrays"]
            item = manager.EMA if manager.EMA in kept else "params"
            arrays, _ = storage.read(folder / str(step), [item])
        except storage.Damaged as error:
            if (folder / str(step)).exists():  # else the run has removed it meanwhile
                _log.error("%s is DAMAGED and not used: %s", folder / str(step), error)
            continue
        if item == manager.EMA:
            _log.info("%s: the moving average of its weights is used.", folder / str(step))
        return storage.place(arrays[item], placed, folder / str(step)), step
    raise UserError(
        f"{folder} holds no {'good' if found else 'finished'} checkpoint"
        f"{': all are damaged.' if found else ' yet: train first.'}"
    )
