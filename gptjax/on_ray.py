"""Trains with several processes that Ray starts.

    gptjax ray --workers=16 rtx4070

Each worker is a Ray task that starts `python -m gptjax.main` with the arguments of this command and
its place among the others; what it prints is shown, and the exit status is that of the first one
that failed. Ray chooses the hosts: those of RAY_ADDRESS, of a `ray start` on this machine, or this
machine alone. On each, the checkout, its environment, the token store and the workdir have the same
path, for example on a shared disk.

Ctrl-C and SIGTERM stop the run with a checkpoint. Where a worker fails, all others end.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from configs import cli
from configs.errors import UserError
from configs.extras import imports_of_extra
from gptjax.main import define_flags

_OWN = ("workers", "gpus", "cpus", "start_seconds")  # flags that gptjax.main does not have
_PASSED_ON = ("JAX_", "NCCL_", "XLA_")  # variables that another host would not have
_POLL_SECONDS = 0.2


def _train(arguments: Sequence[str], folder: str, variables: dict[str, str]) -> int:
    """Runs a process of the training to its end, and returns its exit status; a Ray task."""
    command = [sys.executable, "-m", "gptjax.main", *arguments]
    process = subprocess.Popen(command, cwd=folder, env=os.environ | variables)
    signal.signal(signal.SIGINT, lambda *_: process.terminate())  # from ray.cancel
    try:
        while process.poll() is None:  # no wait(), which ray.cancel does not interrupt
            time.sleep(_POLL_SECONDS)
    finally:
        process.kill()
    status = process.returncode
    return status if status >= 0 else 128 - status  # of a signal: as shells say it


def _free_address() -> str:
    """Returns HOST:PORT, a free port of the host that it runs on; a Ray task."""
    import ray

    host = ray.util.get_node_ip_address()
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _main(_: ConfigDict) -> None:
    with imports_of_extra("ray"):
        import ray
        from ray.util.placement_group import placement_group
    values = flags.FLAGS
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_DEDUP_LOGS"] = "0"  # equal lines of several workers are all shown
    ray.init()
    n_gpus = values.gpus
    if n_gpus is None:
        n_gpus = int("GPU" in ray.cluster_resources())
    bundle = {"CPU": values.cpus, **({"GPU": n_gpus} if n_gpus else {})}
    group = placement_group([bundle] * values.workers)  # all of them or none
    if not group.wait(values.start_seconds):
        raise UserError(
            f"Ray has no room for {values.workers} workers of {bundle} each within "
            f"{values.start_seconds} s (--start_seconds). It has {ray.available_resources()} free."
        )
    tasks = _start(group, bundle, values.workers)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = _wait(tasks)
    except KeyboardInterrupt:
        for task in tasks:
            ray.cancel(task)
        status = _wait(tasks)
    ray.shutdown()
    sys.exit(status)


def _start(group: Any, bundle: dict[str, int], n_workers: int) -> dict[Any, int]:
    """Starts the tasks of all workers; returns the number of each."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    def on_worker(i: int, function: Any) -> Any:
        return ray.remote(function).options(
            num_cpus=bundle["CPU"],
            num_gpus=bundle.get("GPU", 0),
            max_retries=0,  # the user's own command, or Ray's job, starts all of them again
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=i
            ),
        )

    coordinator = ray.get(on_worker(0, _free_address).remote())
    arguments = [a for a in sys.argv[1:] if a.lstrip("-").partition("=")[0] not in _OWN]
    arguments += [f"--coordinator={coordinator}", f"--processes={n_workers}"]
    variables = {k: v for k, v in os.environ.items() if k.startswith(_PASSED_ON)}
    return {
        on_worker(i, _train).remote([*arguments, f"--process={i}"], os.getcwd(), variables): i
        for i in range(n_workers)
    }


def _wait(tasks: dict[Any, int]) -> int:
    """Waits until all tasks have ended, which gptjax.cluster sees to; returns the first failure."""
    import ray

    first, left = 0, list(tasks)
    while left:
        (task,), left = ray.wait(left)
        try:
            status = ray.get(task)
        except ray.exceptions.RayError as error:  # of a lost node, for example
            print(f"worker {tasks[task]}: {error}", file=sys.stderr)
            status = 1
        if status:
            print(f"worker {tasks[task]}: exit status {status}", file=sys.stderr)
        first = first or status
    return first


if __name__ == "__main__":
    cli.define_config()
    define_flags()
    flags.DEFINE_integer("workers", None, "Number of processes.", 1, required=True)
    flags.DEFINE_integer("gpus", None, "GPUs of a worker; default: 1 where Ray has any, or 0.", 0)
    flags.DEFINE_integer("cpus", 1, "CPUs of a worker.", 1)
    flags.DEFINE_integer("start_seconds", 300, "How long to wait for free CPUs and GPUs.", 1)
    cli.run(_main)
