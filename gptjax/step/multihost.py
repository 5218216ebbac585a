"""Work that process 0 does for all, and whole copies of arrays that are sharded over processes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def on_process_zero(work: Callable[[], int], *errors: type[Exception]) -> int:
    """Runs `work` on process 0 and returns its int32 on all processes, which all call this.

    If it raises one of `errors` (listed from the special to the general), all processes raise it.
    """
    if jax.process_count() == 1:
        return work()
    raised: Exception | None = None
    kind, value = -1, 0
    if jax.process_index() == 0:
        try:
            value = work()
        except errors as error:
            raised = error
            kind = next(i for i, listed in enumerate(errors) if isinstance(error, listed))
    kind, value = map(int, multihost_utils.broadcast_one_to_all(np.array([kind, value], np.int32)))
    if raised is not None:
        raise raised
    if kind >= 0:
        raise errors[kind]("see the message of process 0")
    return value


def host_copy(tree: Any) -> Any:
    """Returns the whole arrays in host memory, safe from donation; all processes call this.

    Each exists once: what JAX copies from a GPU, or puts together from shards, is the result. Only
    a whole array on the CPU is no copy but its buffer, which a donation would overwrite.
    """

    def copy(x: Any) -> np.ndarray:
        if not isinstance(x, jax.Array):
            return np.asarray(x)
        if not (x.is_fully_addressable or x.is_fully_replicated):
            x = multihost_utils.process_allgather(x, tiled=True)
        elif x.is_fully_replicated and next(iter(x.devices())).platform == "cpu":
            return np.array(x)
        return np.asarray(x)

    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            leaf.copy_to_host_async()
    return jax.tree.map(copy, tree)


def on_one_device(tree: Any) -> Any:
    """Returns the whole arrays of a tree on one local device; all processes call this.

    Replicated arrays are not copied: use the result before they are donated.
    """
    if all(x.is_fully_replicated for x in jax.tree.leaves(tree)):
        return jax.tree.map(lambda x: x.addressable_data(0), tree)
    return jax.device_put(host_copy(tree), jax.local_devices()[0])
