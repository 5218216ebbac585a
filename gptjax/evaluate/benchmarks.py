"""Runs benchmarks from local JSON-lines files."""

import collections
import gzip
import io
import itertools
import math
import re
import statistics
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configs.errors import UserError
from configs.read import MIB, parse_json, read_bytes
from data_pipeline.packing import permutation
from data_pipeline.tokenizer import Tokenizer
from gptjax.evaluate.published import Results
from gptjax.evaluate.tasks import TASKS, Item, Task
from gptjax.inference.scoring import Score, Scorer, encode_request
from gptjax.metrics.aggregate import ratio

_SUFFIXES = (".jsonl", ".jsonl.gz")
_MAX_BYTES = 64 * MIB  # of a file, decompressed: five times HellaSwag's validation set
_MAX_ITEMS = 200_000  # of a file


def find_files(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Returns the files of each benchmark, recognised by the name of the file or of its folders.

    Folders are searched for *.jsonl and *.jsonl.gz.

    Raises:
        UserError: a path does not exist or names no benchmark, a folder holds none, or several
            files (other than BLiMP's paradigms) belong to the same one.
    """
    files_by_task, errors = _find(paths)
    if errors:
        raise UserError("--benchmarks: " + "\n".join(errors))
    return files_by_task


def problems(paths: Sequence[Path]) -> list[str]:
    """Returns all problems of `paths` (see `find_files`) and of the content of the files."""
    files_by_task, errors = _find(paths)
    for name, files in files_by_task.items():
        for file in files:
            try:
                read_items(TASKS[name], [file])
            except UserError as error:
                errors.append(str(error))
    return errors


def _find(paths: Sequence[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """Returns the files of each benchmark, and the problems of `paths`."""
    files_by_task: dict[str, list[Path]] = collections.defaultdict(list)
    errors = []
    for path in paths:
        if not path.exists():
            errors.append(f"there is no file or folder {path}.")
            continue
        files, above, reason = [path], path.absolute().parent.parent, "names no"
        if path.is_dir():
            files = sorted(f for f in path.rglob("*.jsonl*") if f.name.endswith(_SUFFIXES))
            above, reason = path.absolute().parent, "holds no file whose path names a"
        known = [(f, n) for f in files if (n := _recognise(f.absolute().relative_to(above)))]
        for file, name in known:
            files_by_task[name].append(file)
        if not known:
            errors.append(
                f"{path} {reason} known benchmark: {', '.join(TASKS)}. Files end in "
                f"{' or '.join(_SUFFIXES)}, such as hellaswag_val.jsonl."
            )
    for name, files in files_by_task.items():
        if name != "blimp" and len(files) > 1:
            errors.append(
                f"{len(files)} files are of {name}: {', '.join(map(str, files))}. Name the one to "
                f"use, such as {files[0]}."
            )
    return {name: files_by_task[name] for name in TASKS if name in files_by_task}, errors


def _recognise(path: Path) -> str | None:
    """Returns the benchmark named by the file, or else by the nearest folder."""
    named = itertools.product(reversed(path.parts), TASKS.values())
    return next((task.name for part, task in named if re.search(task.pattern, part.lower())), None)


def read_items(task: Task, files: Sequence[Path], limit: int | None = None) -> list[Item]:
    """Returns the items of a benchmark, or a fixed sample of `limit` items of each group.

    Raises:
        UserError: a file cannot be read, or a line has an unknown layout.
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


def _parse_lines(task: Task, path: Path) -> list[Item]:
    data = read_bytes(path, _MAX_BYTES)
    try:
        if path.suffix == ".gz":
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read ({error}): it may be incomplete. Download it again."
        ) from error
    if len(data) > _MAX_BYTES:
        raise UserError(f"{path} holds over {_MAX_BYTES:,} bytes of text: no benchmark does.")
    items: list[Item] = []
    for number, line in enumerate(io.BytesIO(data), 1):  # splitlines() splits at more characters
        if not line.strip():
            continue
        if len(items) == _MAX_ITEMS:
            raise UserError(f"{path} holds over {_MAX_ITEMS:,} items: no benchmark does.")
        try:
            items.append(task.parse(parse_json(line)))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{path}, line {number}: not an item of {task.name} ({reason}). Expected is one "
                f"JSON object per line, with {task.layout}."
            ) from error
    if not items:
        raise UserError(f"{path} holds no items.")
    return items


class Outcome(NamedTuple):
    """An item with the scores of its requests."""

    item: Item
    scores: tuple[Score, ...]

    def value(self, metric: str) -> float:
        """Returns this item's term of a metric; for perplexity, the negative log-likelihood."""
        log_likelihoods = np.array([score.log_likelihood for score in self.scores])
        if metric == "perplexity":
            return -float(log_likelihoods[0])
        if len(self.scores) == 1:  # an open question
            return float(self.scores[0].is_greedy)
        if metric == "acc_norm":
            log_likelihoods = log_likelihoods / np.array(self.item.lengths, float)
        return float(np.argmax(log_likelihoods) == self.item.gold)


def summarise(outcomes: Sequence[Outcome], metrics: Sequence[str]) -> dict[str, Any]:
    """Returns `n`, `chance` (None for an open question) and each metric with its standard error.

    Standard errors are over items: s / sqrt(n), s with n - 1, as in lm-eval; None for one item.
    That of a perplexity, exp(mean), is exp(mean) s / sqrt(n) to first order, where lm-eval draws
    bootstrap samples.
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


class Suite:
    """The items of some benchmarks, read and encoded once, for any number of models."""

    def __init__(
        self, tokenizer: Tokenizer, files: Mapping[str, Sequence[Path]], limit: int | None = None
    ):
        """Reads the files of `find_files`; `limit` and errors are those of `read_items`."""
        self.items = {name: read_items(TASKS[name], of, limit) for name, of in files.items()}
        self._requests = {
            name: [encode_request(tokenizer, *pair) for item in items for pair in item.requests]
            for name, items in self.items.items()
        }

    def score(self, name: str, scorer: Scorer, *, progress: bool = False) -> list[Outcome]:
        """Returns the items of the benchmark `name` with their scores."""
        scores = iter(scorer.score(self._requests[name], name if progress else None))
        return [
            Outcome(item, tuple(next(scores) for _ in item.requests)) for item in self.items[name]
        ]

    def run(self, scorer: Scorer, *, progress: bool) -> Results:
        """Returns the results of each benchmark; of BLiMP also of each paradigm, as `blimp/NAME`.

        BLiMP's own accuracy is the mean of its paradigms'.
        """
        results: Results = {}
        for name in self.items:
            outcomes = self.score(name, scorer, progress=progress)
            metrics = TASKS[name].metrics
            results[name] = summarise(outcomes, metrics)
            if name == "blimp":
                outcomes.sort(key=lambda outcome: outcome.item.group)
                groups = itertools.groupby(outcomes, lambda outcome: outcome.item.group)
                parts = {f"{name}/{g}": summarise(list(o), metrics) for g, o in groups}
                stderrs = [part["acc_stderr"] for part in parts.values()]
                results |= parts
                results[name] |= {
                    "acc": statistics.fmean(part["acc"] for part in parts.values()),
                    "acc_stderr": None if None in stderrs else math.hypot(*stderrs) / len(stderrs),
                }
        return results
