"""The sources that a run mixes: data.mixture and data.mixture_schedule, or data.mixture_file.

The file is JSON: {"sources": [{"source": "a", "weight": 0.7}, ...], "schedule": [{"step": 1000,
"weights": [0.5, 0.5]}, ...]}, where "schedule" can be left out.
"""

import copy
import math
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import base
from configs.errors import DataError, UserError
from configs.read import MIB, mismatch, read_json

MAX_PERIOD = 1 << 20  # rows after which the order of the sources repeats
MAX_SOURCES = 1024
_FILE = {"sources": [{"source": str, "weight": float}]}
_SCHEDULE = [{"step": int, "weights": [float]}]


class Phase(NamedTuple):
    """Weights that hold from a step on."""

    step: int  # optimizer steps done before
    weights: tuple[int, ...]  # by source: rows of a period; without a common divisor


class Mixture(NamedTuple):
    """A mixture without contradictions."""

    sources: tuple[str, ...]  # each as data.source
    weights: tuple[int, ...]  # positive; of the tokenizer's sample and the validation loss
    phases: tuple[Phase, ...]  # the first begins at step 0

    @property
    def shares(self) -> list[float]:
        """The weights of the sources, which add up to 1."""
        return [weight / sum(self.weights) for weight in self.weights]

    @property
    def names(self) -> list[str]:
        """A short name for each source, for metrics and messages."""
        names: list[str] = []
        for source in self.sources:
            parts = [re.sub(r"[^\w-]+", "_", part.split(".")[0]) for part in Path(source).parts]
            name = next((part for part in reversed(parts) if part.strip("_-")), "source")
            n = 1 + sum(other == name or other.startswith(f"{name}-") for other in names)
            names.append(name if n == 1 else f"{name}-{n}")
        return names


def declared(data: ConfigDict) -> Mixture | None:
    """Returns the mixture of `config.data`; None where data.source is all.

    Raises UserError that lists all `problems`.
    """
    if found := problems(data):
        raise UserError("the mixture cannot be used:\n  - " + "\n  - ".join(found))
    pairs, schedule = _read(data)
    if not pairs:
        return None
    sources, weights = zip(*pairs, strict=True)
    phases = [Phase(step, whole(weights)) for step, weights in schedule]
    if not phases or phases[0].step > 0:
        phases.insert(0, Phase(0, whole(weights)))
    return Mixture(sources, whole(weights), tuple(phases))


def resolved(config: ConfigDict) -> ConfigDict:
    """Returns `config`; with data.mixture_file, a copy that has its content in the other keys."""
    if not config.data.mixture_file:
        return config
    copied = copy.deepcopy(config)
    pairs, schedule = _read(config.data)
    copied.data.mixture = tuple(map(tuple, pairs))
    copied.data.mixture_schedule = tuple((step, tuple(weights)) for step, weights in schedule)
    copied.data.mixture_file = ""
    return copied


def whole(weights: Sequence[float]) -> tuple[int, ...]:
    """Returns the smallest whole numbers in the ratio of `weights`, which count as written."""
    fractions = [Fraction(repr(weight)) for weight in weights]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    ratios = [int(fraction * scale) for fraction in fractions]
    return tuple(ratio // math.gcd(*ratios) for ratio in ratios)


def problems(data: ConfigDict) -> list[str]:
    """Returns every contradiction of the mixture, a sentence each."""
    try:
        pairs, schedule = _read(data)
    except DataError as error:
        return [f"data.mixture_file: {error}"]
    return [*_conflicts(data, bool(pairs)), *_shape_problems(pairs, schedule)]


def _read(data: ConfigDict) -> tuple[Sequence[Any], Sequence[Any]]:
    """Returns (source, weight) pairs and (step, weights) pairs, not checked if not of a file."""
    if not data.mixture_file:
        return data.mixture, data.mixture_schedule
    path = Path(data.mixture_file)
    content = read_json(path, MIB, _FILE)
    if problem := mismatch(schedule := content.get("schedule", []), _SCHEDULE, "schedule"):
        raise DataError(f"{path} is damaged: {problem}.")
    if unknown := content.keys() - {"sources", "schedule"}:
        raise DataError(
            f"{path}: {', '.join(sorted(unknown))}: it has the keys sources and schedule only."
        )
    if not content["sources"]:
        raise DataError(f"{path} names no source.")
    pairs = [(item["source"], item["weight"]) for item in content["sources"]]
    return pairs, [(item["step"], item["weights"]) for item in schedule]


def _conflicts(data: ConfigDict, is_mixed: bool) -> Iterator[str]:
    """Yields the keys that contradict each other."""
    if data.mixture_file and (data.mixture or data.mixture_schedule):
        yield (
            "data.mixture_file holds the sources and their schedule: data.mixture and "
            "data.mixture_schedule must be empty"
        )
    if is_mixed and data.source not in ("", base.get_config().data.source):
        yield (
            f"the mixture names the sources, so that data.source = {data.source!r} is not read: "
            "leave it out, or set it to nothing (--config.data.source=)"
        )
    if is_mixed and data.max_train_tokens > 0:
        yield (
            f"data.max_train_tokens = {data.max_train_tokens:,} is for a single source: it does "
            "not say from which source of a mixture the tokens are"
        )
    if data.mixture_schedule and not is_mixed:
        yield "data.mixture_schedule needs the sources in data.mixture"


def _shape_problems(pairs: Sequence[Any], schedule: Sequence[Any]) -> Iterator[str]:
    if len(pairs) > MAX_SOURCES:
        yield f"data.mixture has {len(pairs):,} sources, and at most {MAX_SOURCES:,} are possible"
    if not all(_is_pair(pair) and isinstance(pair[0], str) and pair[0] for pair in pairs):
        yield f'data.mixture = {pairs!r:.200} must be pairs: (("first source", 0.7), ...)'
        return
    sources = [source for source, _ in pairs]
    for source in dict.fromkeys(s for s in sources if sources.count(s) > 1):
        yield f"data.mixture names {source} {sources.count(source)} times: add up its weights"
    if pairs:
        yield from _weight_problems("data.mixture", [weight for _, weight in pairs], 0)
    if not all(_is_pair(entry) and isinstance(entry[1], tuple | list) for entry in schedule):
        yield (
            f"data.mixture_schedule = {schedule!r:.200} must be pairs of a step and the weights "
            "from there on: ((1000, (0.5, 0.5)), ...)"
        )
        return
    steps = [step for step, _ in schedule]
    if not all(type(step) is int and step >= 0 for step in steps) or steps != sorted(set(steps)):
        yield f"data.mixture_schedule has the steps {steps}, which must be whole and increasing"
    for step, weights in schedule:
        name = f"data.mixture_schedule from step {step}"
        if len(weights) != len(pairs):
            yield f"{name} has {len(weights)} weights for {len(pairs)} sources"
        yield from _weight_problems(name, weights, None)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _weight_problems(name: str, weights: Sequence[Any], above: float | None) -> Iterator[str]:
    """Yields what is wrong with weights that must exceed `above`, or be 0 at least and not all."""
    if not all(type(weight) in (int, float) and math.isfinite(weight) for weight in weights):
        yield f"{name}: the weights {weights!r:.200} must be numbers"
    elif above is not None and min(weights) <= above:
        yield f"{name}: the weights {weights!r:.200} must be positive"
    elif min(weights, default=0) < 0 or not any(weights):
        yield f"{name}: the weights {weights!r:.200} must not be negative, nor all 0"
    elif (period := sum(whole(weights))) > MAX_PERIOD:
        yield (
            f"{name}: the weights {weights!r:.200} are too fine: in whole numbers they add up to "
            f"{period:,}, and {MAX_PERIOD:,} is the most. Round them, or write whole numbers, such "
            "as 1 and 2 for a third and two thirds"
        )
