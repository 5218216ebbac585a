"""What a run left in its workdir, read back: metrics, configuration, sampled texts, evaluations.

A workdir may be of a run that is still going, was cut short, or comes from another version: what
cannot be read is left out and told in `History.notes`.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from configs.validate import leaves
from configs.workdir import CONFIG
from data_pipeline.token_store import TOKENIZER
from data_pipeline.tokenizer import Tokenizer
from gptjax.common.workdir import EVALUATIONS, METRICS, SAMPLES, load_config, read_metrics
from gptjax.metrics.writers import START
from gptjax.model.config import GPTConfig
from gptjax.model.flops import flops_per_token

Line = tuple[int, dict[str, Any]]  # step, and values by name; None: not known


_SEED = re.compile(r"-s\d+$")  # ends the names of a sweep's workdirs


@dataclasses.dataclass(frozen=True)
class History:
    """A run as its workdir tells it."""

    name: str
    lines: list[Line]
    written: float  # seconds since 1970: when metrics.jsonl last changed
    config: dict[str, Any]  # leaves by dotted name; empty where config.json cannot be read
    flops_per_token: int | None
    samples: dict[str, str]  # text by file name without .txt, which is the step
    evaluations: dict[str, dict[str, Any]]  # eval/*.json by file name without .json
    notes: list[str]  # what could not be read

    def series(self, name: str) -> tuple[list[int], list[float | None]]:
        """Returns the steps at which the number `name` was written, and its values."""
        rows = [(step, values[name]) for step, values in self.lines if is_number(values, name)]
        return [step for step, _ in rows], [value for _, value in rows]

    @property
    def setting(self) -> str:
        """The name without the seed that a sweep adds to it: runs that differ in the seed only."""
        return _SEED.sub("", self.name)

    @property
    def restarts(self) -> list[int]:
        """The steps from which the run was continued."""
        return self.series(START)[0][1:]

    @property
    def skipped(self) -> list[Line]:
        """The lines about skipped steps: they hold `skipped/loss` and the like."""
        return [line for line in self.lines if "skipped/loss" in line[1]]

    def last(self, name: str) -> float | None:
        """Returns the last known value of `name`; None where there is none."""
        known = [value for value in self.series(name)[1] if value is not None]
        return known[-1] if known else None

    def position(self, name: str, steps: list[int]) -> list[float] | None:
        """Returns where `steps` lie on `data/tokens_seen` or `perf/train_seconds`.

        Exact at the lines that have `name`; between them, and before the first, by the rate there;
        past the last one by its rate. None where no line has it.
        """
        known = [(s, v) for s, v in zip(*self.series(name), strict=True) if v is not None and s > 0]
        if not known:
            return None
        xs, ys = zip((0, 0.0), *known, strict=True)
        rate = (ys[-1] - ys[-2]) / max(1, xs[-1] - xs[-2])
        with np.errstate(all="ignore"):  # damaged metrics may hold numbers of any size
            values = np.interp(steps, xs, ys) + rate * np.maximum(0, np.subtract(steps, xs[-1]))
        return [float(value) for value in values]


def is_number(values: dict[str, Any], name: str) -> bool:
    """Whether `name` is among the values of a line, as a number or one that is not known."""
    return name in values and isinstance(values[name], int | float | None)


def workdirs(folder: Path) -> list[Path]:
    """Returns `folder`, or, where it is that of a sweep, the workdirs in it that have metrics."""
    inside = sorted(path.parent for path in folder.glob(f"*/{METRICS}"))
    return inside if inside and not (folder / METRICS).is_file() else [folder]


def read(workdir: Path) -> History:
    """Reads a workdir; writes nothing.

    Raises:
        UserError: if the folder has no metrics.jsonl.
    """
    path = workdir / METRICS
    if not path.is_file():
        raise UserError(
            f"{workdir} has no {METRICS}: give the folder that `python -m gptjax.main` writes to "
            f"(config.workdir), once its run has logged a line; for example runs/quickstart."
        )
    notes: list[str] = []
    lines = _lines(workdir, notes)
    return History(
        name=workdir.resolve().name,
        lines=lines,
        written=path.stat().st_mtime,
        config=_config(workdir, notes),
        flops_per_token=_flops_per_token(workdir, notes),
        samples={
            file.stem: file.read_text(errors="replace")
            for file in sorted((workdir / SAMPLES).glob("*.txt"), key=_number)
        },
        evaluations=dict(_evaluations(workdir, notes)),
        notes=notes,
    )


def _number(file: Path) -> tuple[float, str]:
    return (int(file.stem) if file.stem.isdecimal() else math.inf, file.stem)


def _lines(workdir: Path, notes: list[str]) -> list[Line]:
    """Returns the steps and values of the whole lines."""
    lines, damaged = read_metrics(workdir)
    if n := len(damaged):
        notes.append(
            f"{METRICS}: {n} line{'s' if n > 1 else ''} could not be read and "
            f"{'are' if n > 1 else 'is'} left out (a run that is writing, or was cut short)."
        )
    return [(line.pop("step"), line) for line in lines]


def _config(workdir: Path, notes: list[str]) -> dict[str, Any]:
    """Returns the leaves of config.json, of whatever version it is."""
    try:
        return leaves(json.loads((workdir / CONFIG).read_text()))
    except (OSError, ValueError, AttributeError) as error:
        notes.append(f"config.json could not be read: {error}.")
        return {}


def _flops_per_token(workdir: Path, notes: list[str]) -> int | None:
    """Returns the model FLOPs of a token: the shape is in config.json, V in the tokenizer."""
    try:
        config = load_config(workdir)
        tokenizer = workdir / TOKENIZER
        vocab_size = (
            Tokenizer.load(tokenizer).vocab_size
            if tokenizer.is_file()
            else config.tokenizer.vocab_size
        )
        return flops_per_token(GPTConfig.from_config(config, vocab_size))
    except UserError as error:
        notes.append(f"FLOPs are not known: {error}")
        return None


def _evaluations(workdir: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted((workdir / EVALUATIONS).glob("*.json"), key=_number):
        try:
            result = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError) as error:
            notes.append(f"eval/{file.name} could not be read: {error}.")
            continue
        if isinstance(result, dict):
            yield file.stem, result
        else:
            notes.append(f"eval/{file.name} is left out: it holds no object.")
