"""Reads what a run left in its workdir: metrics, configuration, sampled texts, evaluations.

The run may be unfinished, interrupted, or of another version: what cannot be read is left out and
listed in `History.notes`.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import DataError, UserError
from configs.read import read_bytes, read_json
from configs.validate import leaves
from configs.workdir import CONFIG, MAX_CONFIG
from data_pipeline.token_store import TOKENIZER
from data_pipeline.tokenizer import Tokenizer
from gptjax.common.workdir import (
    EVALUATIONS,
    MAX_EVALUATION,
    MAX_SAMPLE,
    METRICS,
    SAMPLES,
    START,
    load_config,
    read_metrics,
)
from gptjax.model import GPTConfig, flops_per_token

Line = tuple[int, dict[str, Any]]  # step, and values by name; None: unknown

_SEED = re.compile(r"-s\d+$")  # ends the names of a sweep's workdirs


@dataclasses.dataclass(frozen=True)
class History:
    """A run as read from its workdir."""

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

    def known(self, name: str) -> list[tuple[int, float]]:
        """Returns the steps and values of `name` where it is known."""
        return [(s, v) for s, v in zip(*self.series(name), strict=True) if v is not None]

    def last(self, name: str) -> float | None:
        """Returns the last known value of `name`; None if there is none."""
        known = self.known(name)
        return known[-1][1] if known else None

    @property
    def setting(self) -> str:
        """The name without the seed that a sweep adds to it."""
        return _SEED.sub("", self.name)

    @property
    def restarts(self) -> list[int]:
        """The steps from which the run was resumed."""
        return self.series(START)[0][1:]

    def position(self, name: str, steps: list[int]) -> list[float] | None:
        """Returns the positions of `steps` on `data/tokens_seen` or `perf/train_seconds`.

        Exact at the lines that have `name`; interpolated between them and from step 0, extrapolated
        at the last rate beyond them. None where no line has it.
        """
        known = [(step, value) for step, value in self.known(name) if step > 0]
        if not known:
            return None
        xs, ys = zip((0, 0.0), *known, strict=True)
        rate = (ys[-1] - ys[-2]) / max(1, xs[-1] - xs[-2])
        with np.errstate(all="ignore"):  # damaged metrics may hold numbers of any size
            values = np.interp(steps, xs, ys) + rate * np.maximum(0, np.subtract(steps, xs[-1]))
        return [float(value) for value in values]


def is_number(values: dict[str, Any], name: str) -> bool:
    """Returns whether a line has the number `name`, known or not."""
    return name in values and isinstance(values[name], int | float | None)


def workdirs(folder: Path) -> list[Path]:
    """Returns `folder`, or, if it is a sweep's, the workdirs in it that have metrics."""
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
            f"{workdir} has no {METRICS}: give the workdir of a run that has logged a line "
            f"(config.workdir of `gptjax train`), for example runs/quickstart."
        )
    notes: list[str] = []
    lines, damaged = read_metrics(workdir)
    if damaged:
        notes.append(
            f"{METRICS}: {len(damaged)} incomplete line(s) could not be read and are left out "
            "(the run is still writing, or was interrupted)."
        )
    return History(
        name=workdir.resolve().name,
        lines=[(line.pop("step"), line) for line in lines],
        written=path.stat().st_mtime,
        config=_config(workdir, notes),
        flops_per_token=_flops_per_token(workdir, notes),
        samples=dict(_samples(workdir, notes)),
        evaluations=dict(_evaluations(workdir, notes)),
        notes=notes,
    )


def _by_step(file: Path) -> tuple[float, str]:
    return (int(file.stem) if file.stem.isdecimal() else math.inf, file.stem)


def _config(workdir: Path, notes: list[str]) -> dict[str, Any]:
    """Returns the leaves of config.json, of whatever version it is."""
    try:
        return leaves(read_json(workdir / CONFIG, MAX_CONFIG))
    except DataError as error:
        notes.append(f"config.json could not be read: {error}")
        return {}


def _flops_per_token(workdir: Path, notes: list[str]) -> int | None:
    """Returns the model FLOPs of a token; V is the tokenizer's where there is one."""
    try:
        config = load_config(workdir)
        vocab_size = config.tokenizer.vocab_size
        if (tokenizer := workdir / TOKENIZER).is_file():
            vocab_size = Tokenizer.load(tokenizer).vocab_size
        return flops_per_token(GPTConfig.from_config(config, vocab_size))
    except UserError as error:
        notes.append(f"FLOPs are not known: {error}")
        return None


def _samples(workdir: Path, notes: list[str]) -> Iterator[tuple[str, str]]:
    for file in sorted((workdir / SAMPLES).glob("*.txt"), key=_by_step):
        try:
            yield file.stem, read_bytes(file, MAX_SAMPLE).decode(errors="replace")
        except DataError as error:
            notes.append(f"samples/{file.name} is left out: {error}")


def _evaluations(workdir: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted((workdir / EVALUATIONS).glob("*.json"), key=_by_step):
        try:
            yield file.stem, read_json(file, MAX_EVALUATION)
        except DataError as error:
            notes.append(f"eval/{file.name} is left out: {error}")
