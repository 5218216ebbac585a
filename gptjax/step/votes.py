"""One decision for all processes: each votes with its batch, and all read the sum a step late.

A signal reaches one process, and clocks differ: a process that acted alone would leave the others
waiting in the next step for ever. JAX's own preemption sync point does not work beside a handler of
signals, which `StopSignal` is.
"""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding


class Votes(NamedTuple):
    """What a process votes for; of all devices, the sums."""

    stop: int = 0  # one vote is enough
    save: int = 0  # needs all


def place_votes(sharding: NamedSharding, votes: Votes) -> jax.Array:
    """Returns the votes of all processes as a part of a batch: int32 [1, devices, 2]."""
    local = np.tile(np.asarray(votes, np.int32), (1, len(sharding.addressable_devices), 1))
    return jax.make_array_from_process_local_data(sharding, local)


class Decision:
    """What all processes have decided by the votes that were read so far."""

    def __init__(self) -> None:
        self.stop = False
        self.save = False

    def read(self, sums: np.ndarray) -> None:
        """Takes the summed votes of a step, in the order of the steps."""
        votes = Votes(*sums.tolist())
        self.stop = self.stop or votes.stop > 0
        self.save = votes.save == jax.device_count()
