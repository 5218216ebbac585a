"""The state of training."""

from typing import Any

import flax.struct
from jax import Array


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes: a pytree of arrays."""

    step: Array  # int32 scalar, optimizer updates completed, skipped ones included
    params: Any
    opt_state: Any
    dropout_key: Array  # uint32 [2], raw key data; each step folds in its number
    ema_params: Any = None  # exponential moving average of `params`; None with optim.ema_decay = 0

    @property
    def eval_params(self) -> Any:
        """The parameters to evaluate and sample with: the average if there is one."""
        return self.params if self.ema_params is None else self.ema_params
