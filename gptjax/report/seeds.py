"""The mean over the seeds of a setting, with its standard error, as one more run of the charts."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

# Of a metric, by step: its value, and the run's tokens and seconds.
_Curve = dict[int, tuple[float | None, float | None, float | None]]


def means(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a run for each setting with several, in the form of `charts.page_data`.

    Its tables have what all runs of the setting have at the same steps: the mean in `values`, and
    in `errors` the standard error of the mean, the sample's standard deviation / sqrt(n).
    """
    by_setting = defaultdict(list)
    for run in runs:
        by_setting[run["group"]].append(run)
    return [_mean(members) for members in by_setting.values() if len(members) > 1]


def _mean(runs: list[dict[str, Any]]) -> dict[str, Any]:
    found = [dict(_curves(run)) for run in runs]
    by_steps = defaultdict(list)
    for name in found[0]:
        if all(name in curves for curves in found):
            steps = tuple(s for s in found[0][name] if all(s in curves[name] for curves in found))
            if steps:
                by_steps[steps].append(name)
    return {
        "name": f"{runs[0]['setting']}, mean of {len(runs)}",
        "group": runs[0]["group"],
        "flops_per_token": runs[0]["flops_per_token"],
        "tables": [
            _table(steps, {name: [curves[name] for curves in found] for name in names})
            for steps, names in by_steps.items()
        ],
    }


def _table(steps: tuple[int, ...], curves: dict[str, list[_Curve]]) -> dict[str, Any]:
    def column(name: str, i: int) -> list[tuple[float | None, float | None]]:
        return [_mean_and_error([curve[step][i] for curve in curves[name]]) for step in steps]

    def axis(i: int) -> list[float | None] | None:
        values = [mean for mean, _ in column(next(iter(curves)), i)]
        return None if None in values else values

    values = {name: column(name, 0) for name in curves}
    return {
        "step": list(steps),
        "tokens": axis(1),
        "seconds": axis(2),
        "values": {name: [mean for mean, _ in pairs] for name, pairs in values.items()},
        "errors": {name: [error for _, error in pairs] for name, pairs in values.items()},
    }


def _curves(run: dict[str, Any]) -> Iterator[tuple[str, _Curve]]:
    for table in run["tables"]:
        unknown = [None] * len(table["step"])
        axes = table["tokens"] or unknown, table["seconds"] or unknown
        for name, values in table["values"].items():
            yield name, dict(zip(table["step"], zip(values, *axes, strict=True), strict=True))


def _mean_and_error(values: list[float | None]) -> tuple[float | None, float | None]:
    """Returns (mean, standard error); None where a value is not known."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None
    error = statistics.stdev(known) / math.sqrt(len(known))
    return float(f"{statistics.fmean(known):.7g}"), float(f"{error:.3g}")
