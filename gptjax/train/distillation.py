"""The parameters of the model that a run learns from (`train.teacher`)."""

import hashlib
import logging
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs.errors import UserError
from data_pipeline.files import hash_json
from data_pipeline.token_store import Stores
from gptjax.checkpoint import digests, storage
from gptjax.common.workdir import CHECKPOINTS
from gptjax.inference import load_run
from gptjax.model import GPTConfig, Params
from gptjax.step import StepFunctions, teacher_model
from gptjax.step.multihost import exchange, together
from gptjax.step.sharding import replicated
from gptjax.train.init_state import description

_log = logging.getLogger(__name__)


class Teacher(NamedTuple):
    """What the train step takes besides the batch, and what a checkpoint keeps of it."""

    params: tuple[Params, ...] = ()  # one element; none without a teacher
    hash: str | None = None  # of the shape and the float32 parameters


def problems(config: ConfigDict) -> list[str]:
    """Returns why `train.teacher` cannot teach; its tokenizer is compared by `load_teacher`."""
    try:
        if teacher_model(config, config.tokenizer.vocab_size) is None:
            return []
    except UserError as error:
        return [str(error)]
    workdir = Path(config.train.teacher)
    if (workdir / CHECKPOINTS).is_dir() and storage.list_steps(workdir / CHECKPOINTS):
        return []
    return [f"train.teacher = {workdir} has no checkpoint yet: train it first"]


def load_teacher(config: ConfigDict, steps: StepFunctions, store: Stores, mesh: Mesh) -> Teacher:
    """Returns the teacher with the parameters of its best checkpoint, whole on each device.

    They have the compute dtype. All processes call this. Raises UserError if it has no good
    checkpoint, if its tokenizer is not that of `store`, or if processes have different ones.
    """
    if (model_config := steps.teacher) is None:
        return Teacher()
    params, teacher_hash = together(lambda: _read(config, model_config, store), UserError)
    if len(set(exchange(teacher_hash))) > 1:
        raise UserError(
            f"train.teacher = {config.train.teacher} is another run, or another checkpoint of it, "
            f"on some processes: give all a copy of the same folder."
        )
    whole = replicated(mesh)

    def place(array: np.ndarray) -> jax.Array:
        array = array.astype(model_config.compute_dtype)
        return jax.make_array_from_callback(array.shape, whole, array.__getitem__)

    return Teacher((jax.tree.map(place, params),), teacher_hash)


def _read(config: ConfigDict, model_config: GPTConfig, store: Stores) -> tuple[Params, str]:
    """Returns the float32 parameters in host memory, and the hash of the teacher."""
    workdir = Path(config.train.teacher)
    run = load_run(workdir, storage.host_device())
    if run.tokenizer.hash != store.tokenizer.hash:
        raise UserError(
            f"train.teacher = {workdir} has another tokenizer than this run, whose data must be "
            f"in the same tokens: add --config.tokenizer.file={workdir}/tokenizer.model."
        )
    _log.info("The run learns from %s at step %s, too.", workdir, f"{run.step:,}")
    params = jax.tree.map(np.asarray, run.params)
    arrays = {name: hashlib.sha256(x).hexdigest() for name, x in digests.named(params).items()}
    return params, hash_json([description(model_config, run.tokenizer), arrays])
