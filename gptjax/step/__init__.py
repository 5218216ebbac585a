"""One optimizer step and one evaluation step, jit-compiled and sharded."""

from gptjax.step.sharding import make_mesh, place_batch
from gptjax.step.train_state import TrainState
from gptjax.step.train_step import StepFunctions

__all__ = ["StepFunctions", "TrainState", "make_mesh", "place_batch"]
