"""The optimizer as one optax transformation, and the schedules it follows."""

from gptjax.optim.optimizer import Optimizer
from gptjax.optim.schedules import decay_start, later_token_weights, rewarm_notice, schedules

__all__ = ["Optimizer", "decay_start", "later_token_weights", "rewarm_notice", "schedules"]
