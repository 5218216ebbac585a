"""One optimizer step and one evaluation step, jit-compiled and sharded."""

from gptjax.step.multihost import host_copy, on_one_device, on_process_zero
from gptjax.step.sharding import make_mesh, place_batch
from gptjax.step.teacher import teacher_model
from gptjax.step.train_step import StepFunctions, TrainState
from gptjax.step.votes import Decision, Votes, place_votes

__all__ = [
    "Decision",
    "StepFunctions",
    "TrainState",
    "Votes",
    "host_copy",
    "make_mesh",
    "on_one_device",
    "on_process_zero",
    "place_batch",
    "place_votes",
    "teacher_model",
]
