"""What processes agree on, work that process 0 does for all, and whole copies of sharded arrays.

Processes agree through JAX's coordination service and not through their devices, so a thread may do
it while the devices train.
"""

import collections
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from configs.errors import UserError

T = TypeVar("T")

_TIMEOUT = 600  # seconds that the first process waits for the last
_calls: collections.Counter[str] = collections.Counter()  # by channel


def exchange(text: str, channel: str = "main") -> list[str]:
    """Returns the texts of all processes, which all call this, in the order of their numbers.

    Calls of one channel are in the same order on all processes; a thread has a channel of its own.
    Raises UserError if a process does not come in ten minutes.
    """
    if jax.process_count() == 1:
        return [text]
    from jax._src.distributed import global_state  # private, as in Orbax

    client: Any = global_state.client
    _calls[channel] += 1
    folder = f"gptjax/{channel}/{_calls[channel]}"
    client.key_value_set(f"{folder}/{jax.process_index()}", text)
    try:
        client.wait_at_barrier(folder, 1000 * _TIMEOUT)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"process {jax.process_index()} waited {_TIMEOUT} s for the others: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    texts = {key.rpartition("/")[2]: value for key, value in client.key_value_dir_get(folder)}
    if jax.process_index() == 0:  # all have read what was exchanged before this
        client.key_value_delete(f"gptjax/{channel}/{_calls[channel] - 1}/")
    return [texts[str(i)] for i in range(jax.process_count())]


def any_process(value: bool) -> bool:
    """Returns whether `value` is true on any process; all call this."""
    return "1" in exchange("1" if value else "")


def together(work: Callable[[], T], *errors: type[Exception], channel: str = "main") -> T:
    """Returns what `work` returns here, after all processes have done theirs; all call this.

    If it raises one of `errors` (listed from the special to the general) on any process, all raise:
    that process its error, the others one of the same kind with its number and message.
    """
    value, _ = _settle(work, errors, channel)
    return value


def on_process_zero(work: Callable[[], T], *errors: type[Exception], channel: str = "main") -> T:
    """Runs `work` on process 0 and returns its value, as JSON, on all processes; all call this.

    If it raises one of `errors`, all raise as in `together`.
    """
    if jax.process_count() == 1:
        return work()
    is_zero = jax.process_index() == 0
    _, values = _settle(lambda: json.dumps(work()) if is_zero else "", errors, channel)
    value: T = json.loads(values[0])
    return value


def _settle(
    work: Callable[[], T], errors: tuple[type[Exception], ...], channel: str
) -> tuple[T, list[T]]:
    """Returns what `work` returns, here and as JSON on all processes, or raises for all."""
    if jax.process_count() == 1:
        value = work()
        return value, [value]
    raised: Exception | None = None
    outcome: list[Any] = []  # [value], or [kind of error, its text]
    try:
        value = work()
        outcome = [value if isinstance(value, str) else None]
    except errors as error:
        raised = error
        kind = next(i for i, listed in enumerate(errors) if isinstance(error, listed))
        name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        outcome = [kind, f"{name}{error}"]
    outcomes = [json.loads(text) for text in exchange(json.dumps(outcome), channel)]
    if raised is not None:
        raise raised
    for i, (kind_or_value, *text) in enumerate(outcomes):
        if text:
            raise errors[kind_or_value](f"process {i}: {text[0]}")
    return value, [value for (value,) in outcomes]


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
