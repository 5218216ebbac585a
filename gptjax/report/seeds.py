"""The mean over the seeds of a setting, with its standard error, as one more run of the charts."""

import math
import statistics
from collections import defaultdict
from typing import Any

_AXES = ("tokens", "seconds")


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
    by_steps: dict[tuple[int, ...], dict[str, list[list[Any]]]] = defaultdict(dict)
    for name in found[0]:
        if all(name in curves for curves in found):
            rows = [curves[name] for curves in found]
            steps = [step for step in rows[0] if all(step in row for row in rows)]
            if steps:
                by_steps[tuple(steps)][name] = [[row[s][0] for row in rows] for s in steps]
                by_steps[tuple(steps)].setdefault("", [[row[s][1:] for row in rows] for s in steps])
    tables = []
    for at, columns in by_steps.items():
        axes = dict(zip(_AXES, zip(*map(_mean_axes, columns.pop("")), strict=True), strict=True))
        results = {name: [_mean_and_error(x) for x in values] for name, values in columns.items()}
        tables.append(
            {
                "step": list(at),
                **{axis: None if None in values else list(values) for axis, values in axes.items()},
                "values": {name: [mean for mean, _ in pairs] for name, pairs in results.items()},
                "errors": {name: [error for _, error in pairs] for name, pairs in results.items()},
            }
        )
    return {
        "name": f"{runs[0]['setting']}, mean of {len(runs)}",
        "group": runs[0]["group"],
        "flops_per_token": runs[0]["flops_per_token"],
        "tables": tables,
    }


def _curves(run: dict[str, Any]) -> Any:
    """Yields (metric, {step: (value, tokens, seconds)})."""
    for table in run["tables"]:
        unknown = [None] * len(table["step"])
        axes = [table[axis] or unknown for axis in _AXES]
        for name, values in table["values"].items():
            yield name, dict(zip(table["step"], zip(values, *axes, strict=True), strict=True))


def _mean_axes(places: list[tuple[float | None, ...]]) -> list[float | None]:
    return [_mean_and_error(list(values))[0] for values in zip(*places, strict=True)]


def _mean_and_error(values: list[float | None]) -> tuple[float | None, float | None]:
    """Returns (mean, standard error); None where a value is not known."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None
    error = statistics.stdev(known) / math.sqrt(len(known))
    return float(f"{statistics.fmean(known):.7g}"), float(f"{error:.3g}")
