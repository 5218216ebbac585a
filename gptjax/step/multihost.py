"""Work that one process does for all, and arrays that no process holds whole."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def on_process_zero(work: Callable[[], int], *errors: type[Exception]) -> int:
    """Returns on every process what `work` returns on process 0; where it raises, all raise.

    Args:
        work: returns a number that is not negative.
        errors: what it may raise, the special before the general.
    """
    if jax.process_count() == 1:
        return work()
    raised: Exception | None = None
    result = 0
    if jax.process_index() == 0:
        try:
            result = work()
        except errors as error:
            raised = error
            result = -1 - next(i for i, kind in enumerate(errors) if isinstance(error, kind))
    result = int(multihost_utils.broadcast_one_to_all(np.int32(result)))
    if raised is not None:
        raise raised
    if result < 0:
        raise errors[-1 - result]("process 0 says why")
    return result


def host_copy(tree: Any) -> Any:
    """Returns the whole arrays of a tree in NumPy, safe from donation; all processes call it."""

    def copy(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            x = multihost_utils.process_allgather(x, tiled=True)
        return np.array(x)

    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            leaf.copy_to_host_async()
    return jax.tree.map(copy, tree)


def on_one_device(tree: Any) -> Any:
    """Returns the whole arrays of a tree on one device of this process; all processes call it.

    What is there already is not copied: use it before the arrays are donated.
    """
    if all(x.is_fully_replicated for x in jax.tree.leaves(tree)):
        return jax.tree.map(lambda x: x.addressable_data(0), tree)
    return jax.device_put(host_copy(tree), jax.local_devices()[0])
