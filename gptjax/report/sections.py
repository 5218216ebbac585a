"""What the page shows, section by section, as text; templates/report.html lays it out.

Each function takes the runs in the order of their columns, or one run; None: nothing to show.
"""

import datetime
import json
import math
import re
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from configs import base
from configs.validate import leaves
from data_pipeline.progress import format_seconds
from gptjax.common.workdir import START
from gptjax.evaluate.published import Results, comparison
from gptjax.evaluate.tasks import TASKS
from gptjax.metrics.writers import BENCHMARK
from gptjax.report.run_history import History, is_number
from gptjax.report.table import Table

_MAX_SAMPLES = 24  # texts of a run on the page; of more, evenly spread ones
_MAX_RESULTS = 5  # files of eval/ in a run's table: the last ones
_MAX_DOCUMENTS = 20  # of a skipped step; metrics.jsonl has all
_UNKNOWN = "–"
_WRITTEN = "last line written"


def _cell(value: Any, form: str | Callable[[float], str] = ",.0f") -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return _UNKNOWN
    return format(value, form) if isinstance(form, str) else form(value)


def _column(run: History, name: str, several: bool) -> str:
    """Returns the heading of a column: `step 1,000` for the file name 1000."""
    heading = f"step {int(name):,}" if name.isdecimal() else name
    return f"{run.name}, {heading}" if several else heading


def summary(runs: list[History]) -> Table:
    """Compares progress, speed and losses of the runs."""
    columns = [_figures(run) for run in runs]
    if len(runs) > 1 and (tokens := _common_tokens(runs)):
        for run, column in zip(runs, columns, strict=True):
            value = np.interp(tokens, *np.transpose(_val_curve(run)))
            column[f"val bits per byte at {tokens:,.0f} tokens, which all reached"] = f"{value:.4f}"
            column[_WRITTEN] = column.pop(_WRITTEN)  # stays the last row
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    rows = [row for row in rows if set(row[1:]) != {_UNKNOWN}]
    return Table(["", *(run.name for run in runs)], rows)


def _figures(run: History) -> dict[str, str]:
    """Returns the figures of one run by name; the names are the same for every run."""
    step = max((step for step, _ in run.lines), default=0)
    max_iters = run.config.get("train.max_iters")
    tokens, seconds = run.last("data/tokens_seen"), run.last("perf/train_seconds")
    progress, left = f"{step:,}", None
    if isinstance(max_iters, int) and max_iters > 0:
        progress = f"{step:,} of {max_iters:,} ({step / max_iters:.0%})"
        timed = run.series("perf/train_seconds")[0]
        if seconds is not None and timed[-1] > 0 and step < max_iters:
            left = (max_iters - step) * seconds / timed[-1]
    flops = None
    if tokens is not None and run.flops_per_token is not None:
        flops = tokens * run.flops_per_token
    best = min(((bits, at) for at, bits in run.known("val/bits_per_byte")), default=None)
    written = min(max(0, run.last("time") or run.written), 1 << 36)  # within what datetime can hold
    return {
        "steps": progress,
        "training time": _cell(seconds, format_seconds),
        "left, at the rate so far": _cell(left, format_seconds),
        "tokens": _cell(tokens),
        "passes over the data": _cell(run.last("data/epoch"), ".3g"),
        "model FLOPs": _cell(flops, ".3e"),
        "tokens per second, median": _cell(_median(run, "perf/tokens_per_sec")),
        "MFU, median": _cell(_median(run, "perf/mfu"), ".1%"),
        "skipped steps": _cell(run.last("optim/skipped_steps")),
        "restarts (dotted lines)": _cell(len(run.restarts) if run.series(START)[0] else None),
        "train loss, last": _cell(run.last("train/loss"), ".4f"),
        "val loss, last": _cell(run.last("val/loss"), ".4f"),
        "val bits per byte, last": _cell(run.last("val/bits_per_byte"), ".4f"),
        "val bits per byte, best": f"{best[0]:.4f} at step {best[1]:,}" if best else _UNKNOWN,
        _WRITTEN: f"{datetime.datetime.fromtimestamp(written, datetime.UTC):%Y-%m-%d %H:%M} UTC",
    }


def _median(run: History, name: str) -> float | None:
    values = [value for _, value in run.known(name)]
    return statistics.median(values) if values else None


def _val_curve(run: History) -> list[tuple[float, float]]:
    """Returns (tokens, bits per byte) of the evaluations; empty where tokens are not known."""
    known = run.known("val/bits_per_byte")
    tokens = run.position("data/tokens_seen", [step for step, _ in known]) or []
    return [(at, bits) for at, (_, bits) in zip(tokens, known, strict=False)]


def _common_tokens(runs: list[History]) -> float | None:
    """Returns the most tokens at which each run's val bits per byte lie between evaluations."""
    curves = [_val_curve(run) for run in runs]
    if not all(curves):
        return None
    first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    return last if first <= last else None


def differences(runs: list[History]) -> Table:
    """Returns the leaves of config.json in which the runs differ."""
    names = sorted({name for run in runs for name in run.config} - {"workdir"})
    rows = [[name, *(_leaf(run.config, name) for run in runs)] for name in names]
    return Table(["", *(run.name for run in runs)], [row for row in rows if len(set(row[1:])) > 1])


def _leaf(config: dict[str, Any], name: str) -> str:
    return json.dumps(config[name], ensure_ascii=False) if name in config else _UNKNOWN


def validation(run: History) -> Table | None:
    """Returns the evaluations of the training loop, a row each; of a mixture, also by source."""
    lines = [(step, values) for step, values in run.lines if is_number(values, "val/loss")]
    steps = [step for step, _ in lines]
    names = dict.fromkeys(name for _, values in lines for name in values)
    sources = [name for name in names if re.fullmatch(r"val/.+/loss", name)]
    unknown: list[float | None] = [None] * len(steps)
    tokens = run.position("data/tokens_seen", steps) or unknown
    seconds = run.position("perf/train_seconds", steps) or unknown
    rows = [
        [
            f"{step:,}",
            _cell(tokens_seen),
            _cell(train_seconds, format_seconds),
            _cell(values["val/loss"], ".4f"),
            _cell(values.get("val/perplexity"), ",.2f"),
            _cell(values.get("val/bits_per_byte"), ".4f"),
            *(_cell(values.get(name), ".4f") for name in sources),
        ]
        for (step, values), tokens_seen, train_seconds in zip(lines, tokens, seconds, strict=True)
    ]
    head = ["step", "tokens", "training time", "val loss", "perplexity", "bits per byte"]
    head += [f"val loss of {name.split('/')[1]}" for name in sources]
    return Table(head, rows) if rows else None


def evaluations(runs: list[History]) -> tuple[Table, Table, int] | None:
    """Returns what eval/ holds, a column for each file: whole sets, parts of benchmarks.

    The last item is the number of files left out.
    """
    columns = {
        _column(run, name, len(runs) > 1): _with_errors(result)
        for run in runs
        for name, result in list(run.evaluations.items())[-_MAX_RESULTS:]
    }
    if not columns:
        return None
    whole, parts = Table(["", *columns], []), Table(["", *columns], [])
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        is_part = name.startswith("benchmarks.") and "/" in name  # such as BLiMP's 67 paradigms
        row = [name, *(column.get(name, _UNKNOWN) for column in columns.values())]
        (parts if is_part else whole).rows.append(row)
    return whole, parts, sum(max(0, len(run.evaluations) - _MAX_RESULTS) for run in runs)


def _with_errors(result: dict[str, Any]) -> dict[str, str]:
    """Returns the numbers of a result as text, each with its standard error if it has one."""
    scores = result.get("benchmarks")
    if isinstance(scores, dict):  # those of TASKS have a table of their own
        scores = {name: score for name, score in scores.items() if name not in TASKS}
        result = result | {"benchmarks": scores}
    numbers = {name: v for name, v in leaves(result).items() if isinstance(v, int | float)}
    return {
        name: _cell(value, "," if isinstance(value, int) else ",.5g")
        + (f" ± {numbers[error]:.2g}" if (error := f"{name}_stderr") in numbers else "")
        for name, value in numbers.items()
        if not name.endswith("_stderr")
    }


def benchmarks(runs: list[History]) -> Table | None:
    """Returns benchmark scores, in training and by `gptjax.evaluate`, beside published ones."""
    columns = {
        _column(run, name, len(runs) > 1): results
        for run in runs
        for name, results in list(_scores(run))[-_MAX_RESULTS:]
    }
    head, *rows = comparison(columns)
    return Table(head, rows) if columns else None


def _scores(run: History) -> Iterator[tuple[str, Results]]:
    """Yields the scores in each file of eval/, then the last ones of each task in training."""
    for name, result in run.evaluations.items():
        scores = result.get("benchmarks")
        if isinstance(scores, dict):
            known = {task: scores[task] for task in TASKS if isinstance(scores.get(task), dict)}
            if known:
                yield name, known
    last: Results = {}
    last_step = 0
    for step, values in run.lines:
        for name, value in values.items():
            task, _, key = name.removeprefix(BENCHMARK).partition("/")
            if name.startswith(BENCHMARK) and task in TASKS:
                last.setdefault(task, {})[key] = value
                last_step = step
    if last:
        yield f"in training, step {last_step:,}", last


def skipped(run: History) -> Table | None:
    """Returns the skipped steps, with the documents in their batches."""
    rows = []
    for step, values in run.lines:
        if "skipped/loss" not in values:
            continue
        documents = values.get("skipped/documents")
        documents = documents if isinstance(documents, list) else []
        listed = ", ".join(str(document) for document in documents[:_MAX_DOCUMENTS])
        if len(documents) > _MAX_DOCUMENTS:
            listed += f", ... {len(documents)} in all"
        figures = [_cell(values.get(f"skipped/{name}"), ".4g") for name in ("loss", "grad_norm")]
        rows.append([f"{step:,}", *figures, listed])
    head = ["step", "loss", "gradient norm", "documents in the batch"]
    return Table(head, rows) if rows else None


def samples(run: History) -> tuple[list[tuple[str, str]], int] | None:
    """Returns the texts sampled in training, with their headings, and how many are left out."""
    names = list(run.samples)
    if len(names) > _MAX_SAMPLES:  # first and last among them
        names = [names[i * (len(names) - 1) // (_MAX_SAMPLES - 1)] for i in range(_MAX_SAMPLES)]
    texts = [(_column(run, name, several=False), run.samples[name].strip()) for name in names]
    return (texts, len(run.samples) - len(texts)) if texts else None


def config(run: History) -> Table | None:
    """Returns every leaf of config.json, with its default where that is different."""
    defaults = leaves(json.loads(base.get_config().to_json()))  # tuples as lists
    rows = []
    for name in run.config:
        value, default = _leaf(run.config, name), _leaf(defaults, name)
        rows.append([name, value, "" if value == default else default])
    return Table(["", "value", "default, if different"], rows) if rows else None
