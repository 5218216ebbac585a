"""Loads a run: its configuration, its tokenizer and its best parameters."""

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from configs.errors import UserError
from data_pipeline.token_store import TOKENIZER
from data_pipeline.tokenizer import Tokenizer
from gptjax.checkpoint import manager, storage
from gptjax.common.workdir import CHECKPOINTS, load_config
from gptjax.model import GPTConfig, gpt

_log = logging.getLogger(__name__)


class LoadedModel(NamedTuple):
    """A trained model, ready to use."""

    config: ConfigDict
    model_config: GPTConfig
    params: Any
    tokenizer: Tokenizer
    step: int  # optimizer steps before the parameters were saved


def load_run(workdir: str | os.PathLike[str], device: jax.Device | None = None) -> LoadedModel:
    """Returns the best checkpoint of a run by val loss, else the newest, on one device.

    That is by default the first one of this process.
    Raises UserError if the folder is not a workdir or has no good checkpoint.
    """
    workdir = Path(workdir)
    config = load_config(workdir)
    tokenizer = Tokenizer.load(workdir / TOKENIZER)
    model_config = GPTConfig.from_config(config, tokenizer.vocab_size)
    shapes = jax.eval_shape(lambda: gpt.init(model_config, jax.random.key(0)))
    params, step = restore_params(workdir, shapes, device)
    return LoadedModel(config, model_config, params, tokenizer, step)


def restore_params(workdir: Path, shapes: Any, device: jax.Device | None = None) -> tuple[Any, int]:
    """Returns (parameters, step) of the best checkpoint by val loss, else the newest.

    The parameters are their moving average if the run kept one, as in the val losses; `shapes` is
    their tree of ShapeDtypeStructs. Only reads, also while a run writes: a damaged checkpoint is
    logged and the next best is used. Raises UserError if there is no good one.
    """
    folder = workdir / CHECKPOINTS
    if not folder.is_dir():
        raise UserError(f"{workdir} has no checkpoints yet: train first, with gptjax train.")
    steps = storage.list_steps(folder)
    best = storage.by_val_loss(folder)
    one_device = jax.sharding.SingleDeviceSharding(device or jax.local_devices()[0])
    placed = jax.tree.map(lambda x: x.update(sharding=one_device), shapes)
    for step in [*best, *(step for step in reversed(steps) if step not in best)]:
        path = folder / str(step)
        try:
            meta = storage.read_meta(path)
            item = manager.EMA if manager.EMA in meta["arrays"] else "params"
            storage.require_shapes(meta["arrays"][item], shapes, path)
            params = storage.read_arrays(path, meta, {item: placed})[item]
        except storage.Damaged as error:
            if path.exists():  # else the run has removed it meanwhile
                _log.error("%s is DAMAGED and not used: %s", path, error)
            continue
        if item == manager.EMA:
            _log.info("%s: the moving average of its weights is used.", path)
        return params, step
    raise UserError(
        f"{folder} holds no {'good' if steps else 'finished'} checkpoint"
        f"{': all are damaged.' if steps else ' yet: train first.'}"
    )
