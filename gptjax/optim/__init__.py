"""The optimizer as one optax transformation, and the schedules it follows."""

from gptjax.optim.optimizer import make_optimizer
from gptjax.optim.schedules import decay_start, schedules

__all__ = ["decay_start", "make_optimizer", "schedules"]
