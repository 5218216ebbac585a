"""What a run has written so far, read again and again while it writes."""

import os
import time
from pathlib import Path
from typing import Any

from configs.errors import DataError
from configs.read import mismatch, parse_json, read_bytes, read_json
from configs.validate import leaves
from configs.workdir import CONFIG, MAX_CONFIG
from data_pipeline.lock import is_held
from gptjax.common.workdir import LOCK, MAX_METRICS, MAX_SAMPLE, METRICS, SAMPLES, START

_RATE_LINES = 20  # the last ones, whose time and steps give the speed


class Follower:
    """The metrics, configuration and samples of a workdir, as of the last `update`.

    Attributes:
      last: the newest value of each metric, by name.
      curves: (step, value) of each number that was written, by name.
      max_iters: the steps of the run; None until its config.json is there.
      is_running: whether a process trains in the workdir.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self.max_iters: int | None = None
        self.is_running = False
        self._forget()

    def _forget(self) -> None:
        self.last: dict[str, Any] = {}
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self._times: list[tuple[float, int]] = []  # of lines of training since the last start
        self._read, self._rest, self._file = 0, b"", (0, 0)

    def update(self) -> None:
        """Reads what is new; from the beginning where a resumed run has written the file again."""
        # First: once a run has ended, what it has written is all.
        self.is_running = is_held(self.workdir / LOCK)
        try:
            config = leaves(read_json(self.workdir / CONFIG, MAX_CONFIG))
            self.max_iters = int(config["train.max_iters"])
        except (DataError, KeyError, TypeError, ValueError):
            pass  # not there yet
        try:
            with open(self.workdir / METRICS, "rb") as f:
                status = os.fstat(f.fileno())
                if (status.st_dev, status.st_ino) != self._file or status.st_size < self._read:
                    self._forget()
                    self._file = (status.st_dev, status.st_ino)
                f.seek(self._read)
                data = f.read(MAX_METRICS)
        except OSError:
            return
        self._read += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")  # the last one may be half written
        for line in lines:
            self._add(line)

    def _add(self, text: bytes) -> None:
        try:
            line = parse_json(text)
        except ValueError:
            return
        if mismatch(line, {"step": int, "time": float}):
            return
        step = line.pop("step")
        if START in line:  # lines of steps that are made again may follow
            self._times.clear()
        if "train/loss" in line:
            self._times = [*self._times[1 - _RATE_LINES :], (line["time"], step)]
        for name, value in line.items():
            self.last[name] = value
            if isinstance(value, int | float) and not isinstance(value, bool):
                self.curves.setdefault(name, []).append((step, value))

    @property
    def step(self) -> int:
        """The newest step with metrics."""
        return max((curve[-1][0] for curve in self.curves.values()), default=0)

    @property
    def has_begun(self) -> bool:
        """Whether there is a line of metrics."""
        return bool(self.curves)

    @property
    def is_finished(self) -> bool:
        """Whether the last step is done."""
        return self.has_begun and self.max_iters is not None and self.step >= self.max_iters

    @property
    def seconds_left(self) -> float | None:
        """The time left at the pace of the last lines, evaluations included; None if unknown."""
        if self.max_iters is None or len(self._times) < 2:
            return None
        (t0, first), (t1, last) = self._times[0], self._times[-1]
        if last <= first:
            return None
        return max(0.0, (self.max_iters - last) * (t1 - t0) / (last - first))

    @property
    def silent_seconds(self) -> float:
        """How long ago the newest line was written."""
        return max(0.0, time.time() - float(self.last.get("time", time.time())))

    def sample(self) -> tuple[int, str] | None:
        """Returns the step and text of the newest sample; None if there is none."""
        steps = [int(f.stem) for f in (self.workdir / SAMPLES).glob("*.txt") if f.stem.isdecimal()]
        try:
            data = read_bytes(self.workdir / SAMPLES / f"{max(steps)}.txt", MAX_SAMPLE)
        except (ValueError, DataError):
            return None
        return max(steps), data.decode(errors="replace")
