"""Runs work in tasks of a Ray cluster; the interface is that of `worker_pool.Pool`."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from configs.errors import DataError
from configs.extras import imports_of_extra

RETRIES = 20  # of a task whose node or process was lost; errors of the function are not retried
PER_CPU = 4  # tasks submitted and not finished: enough that none waits for the driver

T = TypeVar("T")
R = TypeVar("R")


class RayPool:
    """Plain tasks of one CPU each, on RAY_ADDRESS, a `ray start` here, or this machine alone.

    A task that runs twice must do no harm.
    """

    def __init__(self) -> None:
        """Joins the cluster; UserError: the package ray is missing."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        with imports_of_extra("ray"):
            import ray
        self._ray: Any = ray
        self._joined = not ray.is_initialized()
        if self._joined:  # the checkout is at the same path everywhere
            paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
            variables = {"PYTHONPATH": os.pathsep.join(paths)}
            ray.init(runtime_env={"env_vars": variables}, log_to_driver=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._joined:
            self._ray.shutdown()

    def run(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
        """Yields each item with its result, in the order in which they finish.

        What is in memory does not grow with the number of items, of which PER_CPU for each CPU are
        taken at a time.

        Raises:
          DataError: a task was lost more than RETRIES times; and what the function raises.
        """
        ray = self._ray
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(function)
        waiting: dict[Any, T] = {}
        todo = iter(items)
        try:
            while True:
                limit = PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
                while len(waiting) < limit and (item := next(todo, None)) is not None:
                    waiting[task.remote(item)] = item
                if not waiting:
                    return
                done, _ = ray.wait(list(waiting), num_returns=1)
                yield waiting.pop(done[0]), self._result(done[0])
        finally:
            for reference in waiting:
                ray.cancel(reference)

    def _result(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as e:
            raise e.cause from e
        except errors.RayError as e:
            raise DataError(
                f"A task of the Ray cluster was lost {RETRIES + 1} times ({type(e).__name__}: "
                f"{str(e).strip().splitlines()[0]}). Each needs up to 1.5 GB of memory and a disk "
                "for its shard. Finished shards are kept: run again."
            ) from e
