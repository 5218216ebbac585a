"""The data of the page's charts: which metrics share a chart, and their values, thinned."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Set
from typing import Any

from gptjax.common.workdir import START
from gptjax.evaluate.tasks import TASKS
from gptjax.metrics.writers import BENCHMARK
from gptjax.report import seeds
from gptjax.report.run_history import History, is_number

_MAX_POINTS = 2000  # of a curve: a wide screen has no more columns

# A line of metrics covers the steps since the last one. Of these metrics it holds the mean over
# them, so lines may be averaged further, and smoothed; of all others it holds the last value.
_MEANS = {
    "train/loss",
    "train/bits_per_byte",
    "optim/grad_norm",
    "perf/tokens_per_sec",
    "perf/mfu",
    "data/wait_frac",
}
_AXES = {"data/tokens_seen", "perf/train_seconds"}  # the others are drawn over these
_NOT_DRAWN = _AXES | {"time", START, "skipped/loss", "skipped/grad_norm"}


@dataclasses.dataclass(frozen=True)
class Chart:
    """Some metrics over one pair of axes."""

    title: str
    unit: str
    names: tuple[str, ...]
    log: bool = False  # whether y starts out logarithmic
    main: bool = True  # False: folded away


_CHARTS = (
    Chart("Loss", "nats per token", ("train/loss", "val/loss")),
    Chart("Bits per byte", "of UTF-8 text", ("train/bits_per_byte", "val/bits_per_byte")),
    Chart(
        "Learning rate",
        "",
        ("optim/learning_rate", "optim/head_learning_rate", "optim/muon_learning_rate"),
    ),
    Chart("Gradient norm", "global L2, before clipping", ("optim/grad_norm",), log=True),
    Chart("Throughput", "tokens per second", ("perf/tokens_per_sec",)),
    Chart("MFU", "share of the device's peak FLOP/s", ("perf/mfu",)),
    Chart("Skipped steps", "since the run began", ("optim/skipped_steps",)),
)


def page_data(histories: list[History]) -> dict[str, Any]:
    """Returns the JSON of report.js: `charts` (main ones first), `means`, `runs` and `seeds`.

    A run has `name`, `setting`, `group` (number of its setting: its colour), `flops_per_token`, and
    `tables` of metrics written at the same steps, with the columns `step`, `tokens`, `seconds`
    (None where unknown) and one for each metric; `restarts` has the same three columns; see
    seeds.py for `seeds`. `lines_per_point` of a chart is the greatest of its tables, 0 without
    values.
    """
    names = {
        name
        for history in histories
        for _, values in history.lines
        for name in values.keys() - _NOT_DRAWN
        if is_number(values, name) and not name.startswith(BENCHMARK)
    }
    by_source = list(_source_charts(names))
    drawn = {name for chart in (*_CHARTS, *by_source) for name in chart.names}
    rest = [Chart(name, "", (name,), main=False) for name in sorted(names - drawn)]
    charts = [*_CHARTS, *by_source, *_benchmark_charts(histories), *rest]
    names.update(name for chart in charts for name in chart.names)
    settings = list(dict.fromkeys(history.setting for history in histories))
    runs: list[dict[str, Any]] = [
        {
            "name": history.name,
            "setting": history.setting,
            "group": settings.index(history.setting),
            "flops_per_token": history.flops_per_token,
            "restarts": _positions(history, history.restarts),
            "tables": list(_tables(history, names)),
        }
        for history in histories
    ]
    tables = [table for run in runs for table in run["tables"]]

    def lines_per_point(chart: Chart) -> int:
        sizes = (t["lines_per_point"] for t in tables if t["values"].keys() & chart.names)
        return max(sizes, default=0)

    return {
        "charts": [
            dataclasses.asdict(chart) | {"lines_per_point": lines_per_point(chart)}
            for chart in sorted(charts, key=lambda chart: not chart.main)
        ],
        "means": sorted(_MEANS),
        "runs": runs,
        "seeds": seeds.means(runs),
    }


def _source_charts(names: Set[str]) -> Iterator[Chart]:
    """Yields charts of what differs between the sources of mixtures."""
    for title, unit, pattern in (
        ("Validation loss by source", "nats per token", r"val/.+/loss"),
        ("Passes over each source", "", r"data/.+/epoch"),
    ):
        if of_sources := sorted(name for name in names if re.fullmatch(pattern, name)):
            yield Chart(title, unit, tuple(of_sources))


def _benchmark_charts(histories: list[History]) -> Iterator[Chart]:
    """Yields a chart for each metric of each benchmark that was measured during training."""
    for task in TASKS.values():
        for i, metric in enumerate(task.metrics):
            name = f"{BENCHMARK}{task.name}/{metric}"
            if any(history.known(name) for history in histories):
                unit = "" if metric == "perplexity" else "share of correct items"
                yield Chart(f"{task.name} {metric}", unit, (name,), main=i == 0)


def _tables(history: History, names: set[str]) -> Iterator[dict[str, Any]]:
    by_steps: dict[tuple[int, ...], dict[str, list[float | None]]] = defaultdict(dict)
    for name in sorted(names):
        steps, values = history.series(name)
        if any(value is not None for value in values):
            by_steps[tuple(steps)][name] = values
    for at, columns in by_steps.items():
        size = -(-len(at) // _MAX_POINTS)
        groups = [slice(i, i + size) for i in range(0, len(at), size)]
        yield {
            **_positions(history, [at[group][-1] for group in groups]),
            "lines_per_point": size,
            "values": {
                name: [_rounded(_thin(name, values[group])) for group in groups]
                for name, values in columns.items()
            },
        }


def _positions(history: History, steps: list[int]) -> dict[str, Any]:
    """Returns the positions of `steps` on the axes of steps, tokens and seconds."""
    tokens = history.position("data/tokens_seen", steps)
    seconds = history.position("perf/train_seconds", steps)
    return {
        "step": steps,
        "tokens": tokens and [round(value) if math.isfinite(value) else None for value in tokens],
        "seconds": seconds and [_rounded(value) for value in seconds],
    }


def _thin(name: str, values: list[float | None]) -> float | None:
    """Returns the one value that stands for `values`, of consecutive lines."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return sum(known) / len(known) if name in _MEANS else known[-1]


def _rounded(value: float | None) -> float | None:
    """Rounds to seven significant digits, a float32's: a third of the file's size."""
    return float(f"{value:.7g}") if value is not None and math.isfinite(value) else None
