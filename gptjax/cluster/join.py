"""Joins the other processes of a run, and leaves them: also where this one fails."""

import contextlib
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import logging as absl_logging

from configs import cli
from configs.errors import UserError
from gptjax.cluster.place import Place
from gptjax.cluster.roll_call import call_roll, ranges, who

_log = logging.getLogger(__name__)

_LAST_WORDS_SECONDS = 2.0
_REDUCTION = re.compile("gloo|nccl", re.IGNORECASE)  # what the error of a reduction names


@contextlib.contextmanager
def joined(place: Place | None, join_seconds: int, heartbeat_seconds: int) -> Iterator[None]:
    """Connects JAX to the other processes for a `with` block; does nothing without a `place`.

    Call it before anything touches a device. From here on, each line of the log has the number of
    its process, and processes other than 0 log only warnings and errors. An exception ends the
    process at once, with its message: JAX would wait for the others, which wait for this one in a
    reduction. They notice its end within `heartbeat_seconds`, most of them earlier.
    """
    if place is None:
        yield
        return
    cli.format_log(f"[{place.process}] ")
    if place.process > 0:
        absl_logging.get_absl_handler().setLevel(logging.WARNING)
    try:
        _connect(place, join_seconds, heartbeat_seconds)
        yield
    except BaseException as error:
        _log_failure(error)
        if place.process == 0:  # whose end aborts the others: they may have something to say first
            time.sleep(_LAST_WORDS_SECONDS)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def _connect(place: Place, join_seconds: int, heartbeat_seconds: int) -> None:
    _log.info("Waiting for %d processes at %s.", place.processes, place.coordinator)
    hosts = call_roll(place, join_seconds)
    if hosts:
        _log.info("%d processes: %s.", place.processes, who(dict(enumerate(hosts))))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's own handler of SIGTERM would swallow it until training installs ours.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=heartbeat_seconds,  # all are here: one that dies is missed
        heartbeat_timeout_seconds=heartbeat_seconds,
    )


def _log_failure(error: BaseException) -> None:
    if isinstance(error, UserError | OSError):
        _log.error("error: %s", cli.paragraph(error))
    elif isinstance(error, KeyboardInterrupt):
        _log.error("Interrupted.")
    elif isinstance(error, jax.errors.JaxRuntimeError) and _REDUCTION.search(str(error)):
        _log.error(
            "error: another process has ended, see what it printed (here: %s). The same command "
            "continues from the newest checkpoint.",
            error,
        )
    else:
        _log.error("error: this process failed.", exc_info=error)


def describe_devices(devices: Sequence[Any]) -> str:
    """Returns such as `8 x NVIDIA H100, 4 of each process`.

    Raises UserError if processes have different numbers of devices: each gets an equal part of a
    batch.
    """
    text = f"{len(devices)} x {devices[0].device_kind}"
    counts = Counter(device.process_index for device in devices)
    if len(counts) == 1:
        return text
    processes = {n: [i for i in sorted(counts) if counts[i] == n] for n in set(counts.values())}
    if len(processes) > 1:
        each = "; ".join(f"{n} of process {ranges(i)}" for n, i in sorted(processes.items()))
        raise UserError(
            f"the processes have different numbers of devices ({each}), and each gets an equal "
            f"part of a batch. See nvidia-smi on those hosts, and how GPUs are given to processes."
        )
    return f"{text}, {next(iter(processes))} of each process"
