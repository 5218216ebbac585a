"""The training clock, and the window of steps between two lines of metrics."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from gptjax.metrics.aggregate import average


class Clock:
    """Seconds of training over all restarts; evaluation, saving and compilation are left out."""

    def __init__(self, trained_seconds: float = 0.0, now: Callable[[], float] = time.monotonic):
        """Starts the clock at `trained_seconds`; `now` can be replaced in tests."""
        self._now = now
        self._seconds = trained_seconds
        self._since: float | None = now()

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


_SCHEDULED = ("learning_rate", "muon_learning_rate", "weight_decay")  # the second with Muon only
_WINDOW_SCALARS = (
    "train/loss",
    "train/bits_per_byte",
    "optim/learning_rate",
    "optim/grad_norm",
    "optim/param_norm",
    "perf/tokens_per_sec",
    "perf/mfu",
    "perf/train_seconds",
    "data/wait_frac",
)


class Window:
    """The steps since the last line of metrics: their means, and how fast they were."""

    def __init__(
        self,
        clock: Clock,
        *,
        flops_per_token: int,
        peak_flops: float | None,
        state: dict[str, Any] | None = None,
    ):
        """Starts an empty window, or goes on with the one whose `state` is given.

        Args:
            clock: tells the training seconds; goes on from where it was, too.
            flops_per_token: model FLOPs of one training token.
            peak_flops: of all devices together, None where it is not known.
            state: what `state` of another window was.
        """
        self._clock = clock
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self.restart()
        if state is not None:
            for name, value in state.items():
                setattr(self, f"_{name}", value)

    def restart(self) -> None:
        """Forgets the steps and starts timing anew."""
        self._steps: list[dict[str, float]] = []  # without those that were skipped
        self._timed_steps = 0
        self._timed_targets = 0.0
        self._start = self._clock.seconds
        self._waited = 0.0

    @property
    def state(self) -> dict[str, Any]:
        """What a run that goes on needs so that its next line is that of an unbroken one; JSON."""
        names = ("steps", "timed_steps", "timed_targets", "start", "waited")
        return {name: getattr(self, f"_{name}") for name in names}

    def add(self, values: dict[str, float], *, skipped: bool = False, timed: bool = True) -> None:
        """Adds the metrics of one step; only its time counts if it was `skipped`.

        Args:
            values: the step's metrics.
            skipped: whether its update was skipped: the means leave it out.
            timed: False for a step during which the clock stood still.
        """
        if timed:
            self._timed_steps += 1
            self._timed_targets += values["n_targets"]
        if not skipped:
            self._steps.append(values)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts a `with` block as time spent waiting for data."""
        start = self._clock.seconds
        yield
        self._waited += self._clock.seconds - start

    @property
    def seconds_per_step(self) -> float | None:
        """Mean duration of the window's steps, None where none was timed."""
        if not self._timed_steps:
            return None
        return (self._clock.seconds - self._start) / self._timed_steps

    def scalars(self) -> dict[str, float | None]:
        """Returns what is written of the window, None for what is not known.

        That is `perf/mfu` on a device whose peak is not known, speed where no step was timed, and
        means where all steps were skipped.
        """
        seconds = self._clock.seconds - self._start
        values: dict[str, float | None] = dict.fromkeys(_WINDOW_SCALARS)
        values["perf/train_seconds"] = self._clock.seconds
        if self._steps:
            means, last = average(self._steps), self._steps[-1]
            norms = [step["grad_norm"] for step in self._steps]
            values |= {
                "train/loss": means["loss"],
                "train/bits_per_byte": means["bits_per_byte"],
                **{f"optim/{name}": last[name] for name in _SCHEDULED if name in last},
                "optim/grad_norm": math.fsum(norms) / len(norms),
                "optim/param_norm": last["param_norm"],
            }
        if self._timed_steps and seconds > 0:
            tokens_per_sec = self._timed_targets / seconds
            values["perf/tokens_per_sec"] = tokens_per_sec
            values["data/wait_frac"] = self._waited / seconds
            if self._peak_flops is not None:
                values["perf/mfu"] = tokens_per_sec * self._flops_per_token / self._peak_flops
        return values
