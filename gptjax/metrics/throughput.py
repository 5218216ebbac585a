"""The training clock, and the window of steps between two lines of metrics."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from gptjax.metrics.aggregate import average


class Clock:
    """Seconds of training over all restarts; evaluation, saving and compilation are left out."""

    def __init__(self, trained_seconds: float = 0.0, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._seconds = trained_seconds
        self._since: float | None = now()  # None while paused

    @property
    def seconds(self) -> float:
        """Seconds spent training so far."""
        running = 0.0 if self._since is None else self._now() - self._since
        return self._seconds + running

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock inside a `with` block."""
        self._seconds, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = self._now()


_SCHEDULED = ("learning_rate", "head_learning_rate", "muon_learning_rate", "weight_decay")
_WINDOW_SCALARS = tuple(
    """
    train/loss train/bits_per_byte optim/learning_rate optim/grad_norm optim/param_norm
    perf/tokens_per_sec perf/mfu perf/train_seconds data/wait_frac
    """.split()
)


@dataclasses.dataclass
class _Steps:
    """The content of a window; checkpoints keep it as JSON."""

    start: float  # of the training clock, seconds
    steps: list[dict[str, float]] = dataclasses.field(default_factory=list)  # not the skipped ones
    timed_steps: int = 0
    timed_targets: float = 0.0
    waited: float = 0.0  # seconds, for data


class Window:
    """The steps since the last line of metrics: their means and their speed."""

    def __init__(
        self,
        clock: Clock,
        *,
        flops_per_token: int,  # of one training token
        peak_flops: float | None,  # of all devices together; None if unknown
        state: dict[str, Any] | None = None,
    ):
        """Starts an empty window, or resumes from the `state` of another one."""
        self._clock = clock
        self.flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self.restart()
        if state is not None:
            self._window = _Steps(**state)

    def restart(self) -> None:
        """Forgets the steps and starts timing again."""
        self._window = _Steps(self._clock.seconds)

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed run needs to write the same next line as an unbroken one; JSON."""
        return dataclasses.asdict(self._window)

    def add(self, values: dict[str, float], *, skipped: bool = False, timed: bool = True) -> None:
        """Adds the metrics of one step.

        The means leave a step out whose update was `skipped`, the speed one that was not `timed`
        (the clock stood still).
        """
        if timed:
            self._window.timed_steps += 1
            self._window.timed_targets += values["n_targets"]
        if not skipped:
            self._window.steps.append(values)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts a `with` block as time spent waiting for data."""
        start = self._clock.seconds
        yield
        self._window.waited += self._clock.seconds - start

    @property
    def seconds_per_step(self) -> float | None:
        """Mean duration of the window's steps, None where none was timed."""
        if not self._window.timed_steps:
            return None
        return (self._clock.seconds - self._window.start) / self._window.timed_steps

    def scalars(self) -> dict[str, float | None]:
        """Returns the window's metrics, None for what is unknown.

        That is `perf/mfu` on a device whose peak is unknown, speed where no step was timed, and
        means where all steps were skipped.
        """
        window = self._window
        seconds = self._clock.seconds - window.start
        values: dict[str, float | None] = dict.fromkeys(_WINDOW_SCALARS)
        values["perf/train_seconds"] = self._clock.seconds
        if window.steps:
            means, last = average(window.steps), window.steps[-1]
            norms = [step["grad_norm"] for step in window.steps]
            values |= {
                "train/loss": means["loss"],
                "train/bits_per_byte": means["bits_per_byte"],
                **{f"optim/{name}": last[name] for name in _SCHEDULED if name in last},
                "optim/grad_norm": math.fsum(norms) / len(norms),
                "optim/param_norm": last["param_norm"],
            }
        if window.timed_steps and seconds > 0:
            tokens_per_sec = window.timed_targets / seconds
            values["perf/tokens_per_sec"] = tokens_per_sec
            values["data/wait_frac"] = window.waited / seconds
            if self._peak_flops is not None:
                values["perf/mfu"] = tokens_per_sec * self.flops_per_token / self._peak_flops
        return values
