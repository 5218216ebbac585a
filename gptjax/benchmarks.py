"""Runs benchmarks from local JSON-lines files, and sets the scores beside those of other models."""

import collections
import dataclasses
import gzip
import json
import logging
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.flags import UserError
from data_pipeline.packing import permutation
from data_pipeline.tokenizer import Tokenizer
from gptjax.metrics import ratio
from gptjax.model import GPTConfig
from gptjax.published import PUBLISHED
from gptjax.scoring import Score, Scorer, encode_request
from gptjax.tasks import TASKS, Item, Task

_log = logging.getLogger(__name__)

_SUFFIXES = (".jsonl", ".jsonl.gz")

Results = dict[str, dict[str, Any]]  # by benchmark: n, chance, and each metric with its _stderr


def find_files(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Returns the files of each benchmark, which is recognised by the file's name or its folders'.

    Args:
        paths: files, and folders that are searched through for *.jsonl and *.jsonl.gz.

    Raises:
        UserError: if a path does not exist or is no known benchmark, a folder holds none, or
            several files (other than BLiMP's paradigms) are of the same one.
    """
    found: dict[str, list[Path]] = collections.defaultdict(list)
    for path in paths:
        if not path.exists():
            raise UserError(f"--benchmarks: there is no file or folder {path}.")
        files = [path] if path.is_file() else sorted(_json_lines_in(path))
        above = path.absolute().parent.parent if path.is_file() else path.absolute().parent
        known = [(f, n) for f in files if (n := recognise(f.absolute().relative_to(above)))]
        for file, name in known:
            found[name].append(file)
        if not known:
            what = "names no" if path.is_file() else "holds no file whose path names a"
            raise UserError(
                f"--benchmarks: {path} {what} benchmark that is known: {', '.join(TASKS)}. Files "
                f"end in {' or '.join(_SUFFIXES)}, such as hellaswag_val.jsonl."
            )
    for name, files in found.items():
        if name != "blimp" and len(files) > 1:
            raise UserError(
                f"--benchmarks: {len(files)} files are of {name}: {', '.join(map(str, files))}. "
                f"Name the one to use: --benchmarks={files[0]}"
            )
    return {name: found[name] for name in TASKS if name in found}


def _json_lines_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*.jsonl*") if path.name.endswith(_SUFFIXES))


def recognise(path: Path) -> str | None:
    """Returns the benchmark that a path names: in its file name, or else in the nearest folder."""
    for part in reversed(path.parts):
        for name, task in TASKS.items():
            if re.search(task.pattern, part.lower()):
                return name
    return None


def read_items(task: Task, files: Sequence[Path], limit: int | None = None) -> list[Item]:
    """Returns the items of a benchmark, or `limit` of them (of each group), always the same ones.

    Raises:
        UserError: if a file cannot be read, or a line has another layout.
    """
    items = [item for path in files for item in _parse_lines(task, path)]
    if limit is None:
        return items
    groups: dict[str, list[Item]] = collections.defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    return [
        group[i] for group in groups.values() for i in sorted(permutation(len(group), 0, 0)[:limit])
    ]


def _parse_lines(task: Task, path: Path) -> Iterator[Item]:
    try:
        opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
        with opened as file:
            lines = file.read().decode().split("\n")  # splitlines() knows more ends of lines
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). Is the file whole? Download it again."
        ) from error
    n = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = task.parse(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{path}, line {number}: this is no item of {task.name} ({reason}). One JSON "
                f"object a line is expected, with {task.layout}."
            ) from error
        n += 1
        yield item
    if not n:
        raise UserError(f"{path} holds no items.")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """An item with the scores of its requests."""

    item: Item
    scores: tuple[Score, ...]

    def value(self, metric: str) -> float:
        """Returns what this item adds to a metric; for perplexity, the negative log-likelihood."""
        log_likelihoods = np.array([score.log_likelihood for score in self.scores])
        if metric == "perplexity":
            return -float(log_likelihoods[0])
        if len(self.scores) == 1:  # no choice: the most likely text, or not
            return float(self.scores[0].is_greedy)
        if metric == "acc_norm":
            log_likelihoods = log_likelihoods / np.array(self.item.lengths, float)
        return float(np.argmax(log_likelihoods) == self.item.gold)


def score_items(
    scorer: Scorer, tokenizer: Tokenizer, items: Sequence[Item], name: str | None = None
) -> list[Outcome]:
    """Returns each item with its scores; `name` is for progress, see `Scorer.score`."""
    requests = [encode_request(tokenizer, *pair) for item in items for pair in item.requests]
    scores = iter(scorer.score(requests, name))
    return [Outcome(item, tuple(next(scores) for _ in item.requests)) for item in items]


def summarise(outcomes: Sequence[Outcome], metrics: Sequence[str]) -> dict[str, Any]:
    """Returns `n`, `chance` (None for an open question) and each metric with its standard error.

    Standard errors are over items: s / sqrt(n), s with n - 1, as in lm-eval. That of a perplexity,
    exp(mean), is exp(mean) s / sqrt(n) to first order; lm-eval draws bootstrap samples instead.
    None where there is one item only.
    """
    n_choices = [len(outcome.scores) for outcome in outcomes]
    chance = None if min(n_choices) == 1 else math.fsum(1 / n for n in n_choices) / len(n_choices)
    summary: dict[str, Any] = {"n": len(outcomes), "chance": chance}
    for metric in metrics:
        mean, stderr = ratio([o.value(metric) for o in outcomes], [1.0] * len(outcomes))
        if metric == "perplexity":
            mean = math.exp(min(mean, 700.0))  # beyond, a float overflows
            stderr = None if stderr is None else mean * stderr
        summary |= {metric: mean, f"{metric}_stderr": stderr}
    return summary


def run_files(
    scorer: Scorer,
    tokenizer: Tokenizer,
    files: Mapping[str, Sequence[Path]],
    *,
    limit: int | None = None,
    progress: bool = True,
) -> Results:
    """Returns the results of each benchmark; of BLiMP also of each paradigm, as `blimp/PARADIGM`.

    BLiMP's own accuracy is the mean of its paradigms'.

    Args:
        scorer: of the model.
        tokenizer: the one it was trained with.
        files: from `find_files`.
        limit: items of each benchmark or paradigm, at most; None for all.
        progress: whether it is shown.

    Raises:
        UserError: if any of the files cannot be used; before anything is scored.
    """
    read = {name: read_items(TASKS[name], paths, limit) for name, paths in files.items()}
    results: Results = {}
    for name, items in read.items():
        outcomes = score_items(scorer, tokenizer, items, name if progress else None)
        metrics = TASKS[name].metrics
        groups: dict[str, list[Outcome]] = collections.defaultdict(list)
        for outcome in outcomes:
            groups[outcome.item.group].append(outcome)
        results[name] = summarise(outcomes, metrics)
        if name == "blimp":
            parts = {f"{name}/{g}": summarise(of, metrics) for g, of in sorted(groups.items())}
            results[name] |= _mean_of(list(parts.values()))
            results |= parts
    return results


def _mean_of(parts: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Returns the mean accuracy of independent groups that weigh the same."""
    stderrs = [part["acc_stderr"] for part in parts]
    return {
        "acc": math.fsum(part["acc"] for part in parts) / len(parts),
        "acc_stderr": None if None in stderrs else math.hypot(*stderrs) / len(parts),
    }


def run_benchmarks(
    gpt: GPTConfig,
    params: Any,
    tokenizer: Tokenizer,
    files: Mapping[str, Sequence[Path]],
    limit: int | None,
) -> dict[str, float]:
    """Returns `task/metric` -> value of each benchmark, silently: a hook for the training loop.

    Args:
        gpt: the model's shape.
        params: its parameters, wherever they are.
        tokenizer: the one it is trained with.
        files: from `find_files`.
        limit: items of each benchmark or paradigm, the same ones each time; None for all.

    Raises:
        UserError: if any of the files cannot be used.
    """
    results = run_files(Scorer(gpt, params), tokenizer, files, limit=limit, progress=False)
    return {
        f"{name}/{metric}": results[name][metric]
        for name in files
        for metric in TASKS[name].metrics
    }


def table(results: Results, model_name: str) -> str:
    """Returns the results beside published ones, with sources, and BLiMP's paradigms below."""
    header = ["", "items", "chance", model_name, *(p.model for p in PUBLISHED)]
    lines = [header]
    for name, values in results.items():
        for metric in TASKS[name].metrics if name in TASKS else ():
            others = [_number(p.figures.get(f"{name}/{metric}"), metric) for p in PUBLISHED]
            chance = "" if values["chance"] is None else _number(values["chance"], metric)
            lines.append(
                [f"{name} {metric}", f"{values['n']:,}", chance, _own(values, metric), *others]
            )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = []
    for first, *others in lines:
        cells = [cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)]
        text.append("  ".join([first.ljust(widths[0]), *cells]))
    text += ["", "Accuracies in %, zero-shot as in lm-eval, ± one standard error over items."]
    text += [f"{p.model}: {p.source}." for p in PUBLISHED]
    if paradigms := {name: values for name, values in results.items() if name not in TASKS}:
        width = max(map(len, paradigms))
        text += ["", *(f"{n.ljust(width)}  {_own(v, 'acc')}" for n, v in paradigms.items())]
    return "\n".join(line.rstrip() for line in text)


def _number(value: float | None, metric: str) -> str:
    if value is None:
        return "n/a"
    if metric == "perplexity":
        return f"{value:.2f}" if value < 10_000 else f"{value:.2e}"
    return f"{100 * value:.1f}"


def _own(values: Mapping[str, Any], metric: str) -> str:
    return f"{_number(values[metric], metric)} ± {_number(values[f'{metric}_stderr'], metric)}"
