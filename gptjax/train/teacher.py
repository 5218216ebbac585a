"""The parameters of the model that a run learns from (`train.teacher`)."""

import hashlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs.errors import UserError
from data_pipeline.token_store import Stores
from gptjax.inference import load_run
from gptjax.step import StepFunctions
from gptjax.step.sharding import replicated

_log = logging.getLogger(__name__)


class Teacher(NamedTuple):
    """A teacher, or that there is none."""

    params: tuple[Any, ...] = ()  # of one teacher: the last argument of the train step
    hash: str | None = None  # SHA-256 of the float32 parameters


def load_teacher(config: ConfigDict, steps: StepFunctions, store: Stores, mesh: Mesh) -> Teacher:
    """Returns the teacher with the parameters of its best checkpoint, whole on each device.

    They have the compute dtype. Raises UserError if it has no checkpoint, or a tokenizer that is
    not that of `store`.
    """
    if steps.teacher is None:
        return Teacher()
    workdir = Path(config.train.teacher)
    _, _, params, tokenizer, step = load_run(workdir)
    if tokenizer.hash != store.tokenizer.hash:
        raise UserError(
            f"train.teacher = {workdir} has another tokenizer than this run, whose data must be "
            f"in the same tokens: add --config.tokenizer.file={workdir}/tokenizer.model."
        )
    digest = hashlib.sha256()
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape}\n".encode())
        digest.update(np.asarray(array).tobytes())
    _log.info("The run learns from %s at step %s, too.", workdir, f"{step:,}")
    dtype = steps.teacher.compute_dtype
    params = jax.tree.map(lambda array: np.asarray(array).astype(dtype), params)
    return Teacher((jax.device_put(params, replicated(mesh)),), digest.hexdigest())
