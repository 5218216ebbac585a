"""Means of metrics: token-weighted loss, perplexity, bits per byte, standard errors."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def average(sums: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns `loss` (nats per target), `perplexity` and `bits_per_byte` of metrics of steps.

    Their `nats`, `n_targets` and `n_bytes` are summed in float64 and divided once. Bits per byte,
    nats / (ln 2 x bytes), are the code length of a text per byte of its UTF-8: the nats cover every
    target, also the BOS that ends a document, which has no bytes.
    """
    nats, n_targets, n_bytes = (
        math.fsum(float(s[k]) for s in sums) for k in ("nats", "n_targets", "n_bytes")
    )
    loss = nats / n_targets
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # beyond, a float overflows
        "bits_per_byte": nats / (math.log(2) * n_bytes),
    }


def scaled(sums: Sequence[Mapping[str, Any]], n_targets: float) -> dict[str, float]:
    """Returns the totals of metrics of steps, for `average`, as if of so many targets."""
    totals = {k: math.fsum(float(s[k]) for s in sums) for k in ("nats", "n_targets", "n_bytes")}
    return {k: total * n_targets / totals["n_targets"] for k, total in totals.items()}


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
