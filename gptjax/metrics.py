"""What the numbers mean: token-weighted means, bits per byte, throughput, MFU, a run's clock."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# Dense bfloat16 FLOP/s with float32 accumulation, by `Device.device_kind`. From NVIDIA's
# architecture whitepapers (GeForce, at boost clock) and data sheets (without sparsity). A device
# that is not listed has no MFU: a guess would be worse. Names are compared whole, for laptop,
# SUPER, Ti and PCIe versions differ by up to a half.
_PEAK_FLOPS = {
    "NVIDIA GeForce RTX 3090": 71.0e12,
    "NVIDIA GeForce RTX 4070": 58.3e12,
    "NVIDIA GeForce RTX 4070 SUPER": 71.0e12,
    "NVIDIA GeForce RTX 4070 Ti": 80.2e12,
    "NVIDIA GeForce RTX 4070 Ti SUPER": 88.2e12,
    "NVIDIA GeForce RTX 4080": 97.5e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak bfloat16 FLOP/s of one device, or None where it is not known."""
    return _PEAK_FLOPS.get(device_kind)


def bits_per_byte(nats: float, n_bytes: float) -> float:
    """Returns nats / (ln 2 x bytes): the code length of a text against its length in UTF-8.

    `nats` covers every target, the BOS that ends a document included; BOS itself has no bytes.
    """
    return nats / (math.log(2) * n_bytes)


def average(sums: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Returns `loss` (nats per target), `perplexity` and `bits_per_byte` of added-up step metrics.

    Args:
        sums: metrics with `nats`, `n_targets` and `n_bytes`; added in float64, divided once.
    """
    sums = list(sums)
    nats, n_targets, n_bytes = (
        math.fsum(float(s[k]) for s in sums) for k in ("nats", "n_targets", "n_bytes")
    )
    loss = nats / n_targets
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # beyond, a float overflows
        "bits_per_byte": bits_per_byte(nats, n_bytes),
    }


def ratio(numerators: ArrayLike, denominators: ArrayLike) -> tuple[float, float | None]:
    """Returns sum / sum over independent units, and its standard error; None for a single unit.

    With units such as documents, r = sum x / sum y has to first order the standard error
    sqrt(n / (n - 1) sum (x - r y)^2) / sum y (Cochran 1977, section 6.4). Where all y are 1, that
    is the mean's s / sqrt(n).
    """
    x, y = np.asarray(numerators, float), np.asarray(denominators, float)
    value = math.fsum(x) / math.fsum(y)
    if x.size < 2:
        return value, None
    squares = math.fsum((x - value * y) ** 2)
    return value, math.sqrt(x.size / (x.size - 1) * squares) / math.fsum(y)


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


class Window:
    """The steps since the last line of metrics: their means, and how fast they were."""

    def __init__(self, clock: Clock, *, flops_per_token: int, peak_flops: float | None):
        """Starts an empty window.

        Args:
            clock: tells the training seconds.
            flops_per_token: model FLOPs of one training token.
            peak_flops: of all devices together, None where it is not known.
        """
        self._clock = clock
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self.restart()

    def restart(self) -> None:
        """Forgets the steps and starts timing anew."""
        self._steps: list[dict[str, float]] = []
        self._start = self._clock.seconds
        self._waited = 0.0

    def add(self, values: dict[str, float]) -> None:
        """Adds the metrics of one step."""
        self._steps.append(values)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts a `with` block as time spent waiting for data."""
        start = self._clock.seconds
        yield
        self._waited += self._clock.seconds - start

    @property
    def seconds_per_step(self) -> float:
        """Mean duration of the window's steps."""
        return (self._clock.seconds - self._start) / len(self._steps)

    def scalars(self) -> dict[str, float | None]:
        """Returns what is written of the window; `perf/mfu` is None where the peak is not known."""
        seconds = self._clock.seconds - self._start
        means = average(self._steps)
        tokens_per_sec = sum(values["n_targets"] for values in self._steps) / seconds
        mfu = None
        if self._peak_flops is not None:
            mfu = tokens_per_sec * self._flops_per_token / self._peak_flops
        return {
            "train/loss": means["loss"],
            "train/bits_per_byte": means["bits_per_byte"],
            "optim/learning_rate": self._steps[-1]["learning_rate"],
            "optim/grad_norm": math.fsum(v["grad_norm"] for v in self._steps) / len(self._steps),
            "optim/param_norm": self._steps[-1]["param_norm"],
            "perf/tokens_per_sec": tokens_per_sec,
            "perf/mfu": mfu,
            "perf/train_seconds": self._clock.seconds,
            "data/wait_frac": self._waited / seconds,
        }


def format_seconds(seconds: float) -> str:
    """Returns `4d 03h`, `3h 07m`, `2m 05s` or `12s`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02}h"
    if hours:
        return f"{h}h {m:02}m"
    return f"{m}m {s:02}s" if m else f"{s}s"
