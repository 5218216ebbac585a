"""What the report says in tables and texts, as HTML: a function for each section of the page.

Each takes the runs, in the order of their columns, and returns "" where there is nothing to say.
"""

import datetime
import html
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs import base
from configs.validate import leaves
from data_pipeline.progress import format_seconds
from gptjax.evaluate.published import NOTES, Results, comparison
from gptjax.evaluate.tasks import TASKS
from gptjax.metrics.writers import BENCHMARK, START
from gptjax.report import sweep_results
from gptjax.report.run_history import History

_MAX_SAMPLES = 24  # texts of a run on the page; of more, evenly spread ones
_MAX_RESULTS = 5  # files of eval/ in a run's table: the last ones
_MAX_DOCUMENTS = 20  # of a skipped step; metrics.jsonl has all
_UNKNOWN = "–"
_WRITTEN = "last line written"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], style: str) -> str:
    """Returns a table; the first cell of a row is its heading. Escapes every cell."""

    def row(cells: Sequence[str], tag: str) -> str:
        first, *rest = (html.escape(cell) for cell in cells)
        return f"<tr><th>{first}</th>" + "".join(f"<{tag}>{c}</{tag}>" for c in rest) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return (
        f'<div class="scroll"><table class="{style}"><thead>{row(head, "th")}</thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _folded(title: str, content: str, *, is_open: bool = False) -> str:
    opened = " open" if is_open else ""
    return f"<details{opened}><summary>{html.escape(title)}</summary>{content}</details>"


def _of_each(runs: list[History], sections: Iterable[str]) -> str:
    """Joins one section a run, under the run's name where there are several; "" where all are."""
    parts = [
        (f"<h3>{html.escape(run.name)}</h3>" if len(runs) > 1 else "") + section
        for run, section in zip(runs, sections, strict=True)
        if section
    ]
    return "\n".join(parts)


def _number(value: Any, form: str = ",.0f") -> str:
    return format(value, form) if isinstance(value, int | float) else _UNKNOWN


# ---- what a sweep has found, and how far the runs are, side by side


def sweep(folder: Path) -> str:
    """What the sweep of this folder has found; "" where it is of none."""
    found = sweep_results.of_folder(folder)
    if found is None:
        return ""
    tables, notes = found
    parts = [f"<h2>{html.escape(folder.resolve().name)}</h2>"]
    for table in tables:
        caption = f"<p>{html.escape(table.caption)}</p>" if table.caption else ""
        parts.append(caption + _table(table.head, table.rows, "numbers figures"))
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    return "".join([*parts, "<h2>Its runs</h2>"])


def summary(runs: list[History]) -> str:
    """How far the runs are and how good, side by side."""
    columns = [_figures(run) for run in runs]
    if len(runs) > 1 and (tokens := _common_tokens(runs)):
        for run, column in zip(runs, columns, strict=True):
            value = np.interp(tokens, *_val_bits(run))
            column[f"val bits per byte at {tokens:,.0f} tokens, which all reached"] = f"{value:.4f}"
            column[_WRITTEN] = column.pop(_WRITTEN)  # stays the last row
    names = list(columns[0])
    rows = [[name, *(column[name] for column in columns)] for name in names]
    rows = [row for row in rows if set(row[1:]) != {_UNKNOWN}]
    return _table(["", *(run.name for run in runs)], rows, "numbers figures")


def _figures(run: History) -> dict[str, str]:
    """Returns the figures of one run by name; the names are the same for every run."""
    step, max_iters = (
        max((step for step, _ in run.lines), default=0),
        run.config.get("train.max_iters"),
    )
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
    best = _best(run)
    written = min(max(0, run.last("time") or run.written), 1 << 36)  # or it is no date
    return {
        "steps": progress,
        "training time": _UNKNOWN if seconds is None else format_seconds(seconds),
        "left, at the rate so far": _UNKNOWN if left is None else format_seconds(left),
        "tokens": _number(tokens),
        "passes over the data": _number(run.last("data/epoch"), ".3g"),
        "model FLOPs": _number(flops, ".3e"),
        "tokens per second, median": _number(_median(run, "perf/tokens_per_sec")),
        "MFU, median": _number(_median(run, "perf/mfu"), ".1%"),
        "skipped steps": _number(run.last("optim/skipped_steps")),
        "restarts (dotted lines)": _number(len(run.restarts) if run.series(START)[0] else None),
        "train loss, last": _number(run.last("train/loss"), ".4f"),
        "val loss, last": _number(run.last("val/loss"), ".4f"),
        "val bits per byte, last": _number(run.last("val/bits_per_byte"), ".4f"),
        "val bits per byte, best": _UNKNOWN
        if best is None
        else f"{best[0]:.4f} at step {best[1]:,}",
        _WRITTEN: f"{datetime.datetime.fromtimestamp(written, datetime.UTC):%Y-%m-%d %H:%M} UTC",
    }


def _median(run: History, name: str) -> float | None:
    known = [value for value in run.series(name)[1] if value is not None]
    return statistics.median(known) if known else None


def _best(run: History) -> tuple[float, int] | None:
    """Returns the lowest val bits per byte and its step."""
    steps, values = run.series("val/bits_per_byte")
    known = [(v, step) for step, v in zip(steps, values, strict=True) if v is not None]
    return min(known, default=None)


def _val_bits(run: History) -> tuple[list[float], list[float]]:
    """Returns (tokens, bits per byte) of the evaluations; empty where tokens are not known."""
    steps, values = run.series("val/bits_per_byte")
    tokens = run.position("data/tokens_seen", steps) or []
    known = [(t, v) for t, v in zip(tokens, values, strict=False) if v is not None]
    return [t for t, _ in known], [v for _, v in known]


def _common_tokens(runs: list[History]) -> float | None:
    """Returns the most tokens at which each run's val bits per byte lie between evaluations."""
    spans = [_val_bits(run)[0] for run in runs]
    if not all(spans):
        return None
    first, last = max(span[0] for span in spans), min(span[-1] for span in spans)
    return last if first <= last else None


def notes(runs: list[History]) -> str:
    """What could not be read."""
    found = [(f"{run.name}: " if len(runs) > 1 else "") + n for run in runs for n in run.notes]
    return "".join(f'<p class="notes">{html.escape(note)}</p>' for note in found)


# ---- what differs, what came out, what was set


def differences(runs: list[History]) -> str:
    """The leaves of config.json in which the runs differ."""
    if len(runs) == 1:
        return ""
    names = sorted({name for run in runs for name in run.config} - {"workdir"})
    shown = [[name, *(_leaf(run.config, name) for run in runs)] for name in names]
    rows = [row for row in shown if len(set(row[1:])) > 1]
    table = _table(["", *(run.name for run in runs)], rows, "leaves")
    return "<h2>Differences in configuration</h2>" + (table if rows else "<p>None.</p>")


def _leaf(config: dict[str, Any], name: str) -> str:
    return json.dumps(config[name], ensure_ascii=False) if name in config else _UNKNOWN


def evaluations(runs: list[History]) -> str:
    """The evaluations of the training loop, and those of `gptjax.evaluate`."""
    content = _of_each(runs, map(_validation, runs)) or "<p>None yet.</p>"
    return f"<h2>Evaluations</h2>{content}{_results(runs)}"


def _validation(run: History) -> str:
    steps, losses = run.series("val/loss")
    if not steps:
        return ""
    unknown: list[float | None] = [None] * len(steps)
    tokens = run.position("data/tokens_seen", steps) or unknown
    seconds = run.position("perf/train_seconds", steps) or unknown
    others = [
        dict(zip(*run.series(name), strict=True))
        for name in ("val/perplexity", "val/bits_per_byte")
    ]
    rows = [
        [
            f"{step:,}",
            _number(n_tokens),
            _UNKNOWN if at is None else format_seconds(at),
            _number(loss, ".4f"),
            _number(others[0].get(step), ",.2f"),
            _number(others[1].get(step), ".4f"),
        ]
        for step, n_tokens, at, loss in zip(steps, tokens, seconds, losses, strict=True)
    ]
    head = ["step", "tokens", "training time", "val loss", "perplexity", "bits per byte"]
    table = _table(head, rows[-10:], "numbers")
    if len(rows) > 10:
        table += _folded(f"All {len(rows)} evaluations", _table(head, rows, "numbers"))
    return table


def _results(runs: list[History]) -> str:
    """Returns a table of what eval/ holds: a row for each figure, a column for each file."""
    columns = {
        (f"{run.name}, " if len(runs) > 1 else "") + _at_step(name): _with_errors(result)
        for run in runs
        for name, result in list(run.evaluations.items())[-_MAX_RESULTS:]
    }
    if not columns:
        return ""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[name, *(column.get(name, _UNKNOWN) for column in columns.values())] for name in names]
    parts = [row for row in rows if row[0].startswith("benchmarks.") and "/" in row[0]]
    head, rows = ["", *columns], [row for row in rows if row not in parts]
    left_out = sum(max(0, len(run.evaluations) - _MAX_RESULTS) for run in runs)
    more = f'<p class="notes">{left_out:,} earlier ones are in eval/.</p>' if left_out else ""
    title = "<h3>Measured by gptjax.evaluate (± one standard error)</h3>"
    table = _table(head, rows, "numbers results")
    if parts:  # BLiMP's paradigms: 67
        table += _folded("Parts of benchmarks", _table(head, parts, "numbers results"))
    return title + table + more


def _with_errors(result: dict[str, Any]) -> dict[str, str]:
    """Returns the numbers of a result as text, each with its standard error if it has one."""
    scores = result.get("benchmarks")
    if isinstance(scores, dict):  # those of TASKS have a table of their own
        scores = {name: score for name, score in scores.items() if name not in TASKS}
        result = result | {"benchmarks": scores}
    numbers = leaves(result)
    numbers = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
    return {
        name: _number(value, "," if isinstance(value, int) else ",.5g")
        + (f" ± {numbers[error]:.2g}" if (error := f"{name}_stderr") in numbers else "")
        for name, value in numbers.items()
        if not name.endswith("_stderr")
    }


def _at_step(name: str) -> str:
    """Returns `step 1,000` for the file name 1000, other names as they are."""
    return f"step {int(name):,}" if name.isdecimal() else name


def benchmarks(runs: list[History]) -> str:
    """What was scored on benchmarks, in training and by `gptjax.evaluate`, beside other models."""
    columns = {
        (f"{run.name}, " if len(runs) > 1 else "") + name: results
        for run in runs
        for name, results in list(_scores(run))[-_MAX_RESULTS:]
    }
    if not columns:
        return ""
    head, *rows = comparison(columns)
    table = _table(head, rows, "numbers")
    notes = "".join(f'<p class="notes">{html.escape(note)}</p>' for note in NOTES)
    return f"<h2>Benchmarks</h2>{table}{notes}"


def _scores(run: History) -> Iterator[tuple[str, Results]]:
    """Yields the results of the files of eval/, and the last ones of each task in training."""
    for name, result in run.evaluations.items():
        scores = result.get("benchmarks")
        if isinstance(scores, dict):
            known = {task: scores[task] for task in TASKS if isinstance(scores.get(task), dict)}
            if known:
                yield _at_step(name), known
    last: Results = {}
    step = 0
    for at, values in run.lines:
        for name, value in values.items():
            task, _, key = name.removeprefix(BENCHMARK).partition("/")
            if name.startswith(BENCHMARK) and task in TASKS:
                last.setdefault(task, {})[key] = value
                step = at
    if last:
        yield f"in training, step {step:,}", last


def skipped(runs: list[History]) -> str:
    """The steps that were skipped, with the documents in their batches."""
    content = _of_each(runs, map(_skipped_steps, runs))
    return f"<h2>Skipped steps</h2>{content}" if content else ""


def _skipped_steps(run: History) -> str:
    rows = []
    for step, values in run.skipped:
        found = values.get("skipped/documents")
        documents = [str(document) for document in found] if isinstance(found, list) else []
        named = ", ".join(documents[:_MAX_DOCUMENTS])
        if len(documents) > _MAX_DOCUMENTS:
            named += f", ... {len(documents)} in all"
        figures = [values.get(f"skipped/{name}") for name in ("loss", "grad_norm")]
        rows.append([f"{step:,}", *(_number(figure, ".4g") for figure in figures), named])
    head = ["step", "loss", "gradient norm", "documents in the batch"]
    return _table(head, rows, "skips") if rows else ""


def samples(runs: list[History]) -> str:
    """The texts sampled through training; the last one is unfolded."""
    content = _of_each(runs, map(_texts, runs))
    return f"<h2>Sampled texts</h2>{content}" if content else ""


def _texts(run: History) -> str:
    names = list(run.samples)
    if len(names) > _MAX_SAMPLES:  # first and last among them
        names = [names[i * (len(names) - 1) // (_MAX_SAMPLES - 1)] for i in range(_MAX_SAMPLES)]
    texts = [
        _folded(
            _at_step(name),
            f'<pre class="text" dir="auto">{html.escape(run.samples[name].strip())}</pre>',
            is_open=name == names[-1],
        )
        for name in names
    ]
    left_out = len(run.samples) - len(names)
    more = f'<p class="notes">{left_out:,} more are in samples/.</p>' if left_out else ""
    return "".join(texts) + more


def config(runs: list[History]) -> str:
    """Every leaf of config.json, with its default where that is another."""
    defaults = base.get_config()
    known = leaves(json.loads(json.dumps(defaults.to_dict())))  # tuples as lists
    sections = []
    for run in runs:
        rows = []
        for name in run.config:
            value, default = _leaf(run.config, name), _leaf(known, name)
            rows.append([name, value, "" if value == default else default])
        table = _table(["", "value", "default, where another"], rows, "leaves")
        sections.append(_folded(f"{len(rows)} settings", table) if rows else "")
    content = _of_each(runs, sections)
    return f"<h2>Resolved configuration</h2>{content}" if content else ""


SECTIONS = (differences, evaluations, benchmarks, skipped, samples, config)
