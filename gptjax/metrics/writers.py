"""Where the numbers go: metrics.jsonl, TensorBoard and, optionally, W&B."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipeline.files import write_atomically
from gptjax.common.workdir import METRICS, TENSORBOARD, finite_or_none, read_metrics
from gptjax.metrics.wandb_run import WandbRun

_log = logging.getLogger(__name__)

BENCHMARK = "benchmark/"  # + task/metric, task/metric_stderr, task/n and task/chance


class AppendedFile:
    """A file that grows at its end; data that cannot be written now is kept and written later."""

    def __init__(self, path: Path):
        self._path = path
        self._waiting = b""
        self._failed = False
        self._fd = self._open()

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def append(self, data: bytes) -> None:
        """Adds `data`; on a full or read-only disk, in memory until a later call succeeds."""
        self._waiting += data
        try:
            self._flush()
        except OSError as error:
            if not self._failed:
                _log.error(
                    "%s cannot be written (%s). Training continues; lines are kept in memory until "
                    "they can be written.",
                    self._path,
                    error.strerror,
                )
            self._failed = True
        else:
            if self._failed:
                _log.info("%s can be written again; no line was lost.", self._path)
            self._failed = False

    def _flush(self) -> None:
        if not self._is_in_place():
            _log.error("%s has disappeared: a new file is started.", self._path)
            descriptor = self._open()
            os.close(self._fd)
            self._fd = descriptor
        while self._waiting:  # a line written in part is completed by the next call
            self._waiting = self._waiting[os.write(self._fd, self._waiting) :]

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def sync(self) -> None:
        """Makes the written data survive a power failure, where the disk allows."""
        self.append(b"")
        with contextlib.suppress(OSError):
            os.fsync(self._fd)

    def close(self) -> None:
        """Writes what is left, if that is possible, and closes the file."""
        self.sync()
        if self._waiting:
            _log.error("%s lacks its last %d bytes.", self._path, len(self._waiting))
        os.close(self._fd)


class MetricsWriter:
    """Writes metrics by step to every destination of the configuration, on process 0 only."""

    def __init__(self, workdir: Path, config: ConfigDict, start_step: int):
        """Opens the destinations and drops the lines of steps after `start_step`.

        TensorBoard's file is rewritten from metrics.jsonl at each start, so that both agree
        whenever the run was killed.
        """
        self._file: AppendedFile | None = None
        self._events: AppendedFile | None = None
        self._wandb: WandbRun | None = None
        if jax.process_index() > 0:
            return
        lines = _drop_later_steps(workdir, start_step)
        self._file = AppendedFile(workdir / METRICS)
        if config.log.tensorboard:
            from gptjax.metrics import tensorboard  # takes a second

            self._encode = tensorboard.encode
            self._events = AppendedFile(tensorboard.rewrite(workdir / TENSORBOARD, lines))
        if config.log.wandb:
            self._wandb = WandbRun(workdir, config)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes the values of one step; None stands for unknown, and for what is not finite.

        Only numbers are written to other destinations than metrics.jsonl.
        """
        if self._file is None:
            return
        values = {name: finite_or_none(value) for name, value in values.items()}
        line = {"step": step, "time": round(time.time(), 3), **values}
        self._file.append((json.dumps(line, allow_nan=False) + "\n").encode())
        if self._events is not None:
            self._events.append(self._encode(line))
        if self._wandb is not None:
            numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
            self._wandb.log(step, numbers)

    def sync(self) -> None:
        """Makes metrics.jsonl survive a power failure."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Flushes and closes every destination."""
        for file in (self._file, self._events):
            if file is not None:
                file.close()
        if self._wandb is not None:
            self._wandb.finish()


def _drop_later_steps(workdir: Path, last_step: int) -> list[dict[str, Any]]:
    """Keeps the complete lines of metrics.jsonl up to `last_step`; returns them."""
    path = workdir / METRICS
    if not path.exists():
        return []
    lines, damaged = read_metrics(workdir)
    for text in damaged:
        _log.warning("%s: dropped an incomplete line: %.60s", path, text)
    kept = [line for line in lines if line["step"] <= last_step]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
    return kept
