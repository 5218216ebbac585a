"""The folder of a run: its lock, the names of its files, its configuration and metrics."""

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.errors import UserError
from configs.read import MIB, mismatch, read_json, read_json_lines
from configs.validate import leaves, model_problems, range_problems, unknown_keys
from configs.workdir import CONFIG, MACHINE, MAX_CONFIG, recipe
from data_pipeline.files import write_atomically
from data_pipeline.lock import FileLock, Held

_log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"  # one JSON object a line: step, time and values
MAX_METRICS = 128 * MIB  # bytes: 300,000 lines of usual length
MAX_LINES = 1_000_000
START = "run/start_step"  # in a line of its own when a run starts or resumes, and in no other
CHECKPOINTS = "checkpoints"  # a folder for each saved step
EVALUATIONS = "eval"  # STEP.json, by gptjax.evaluate
MAX_EVALUATION = 4 * MIB  # bytes of one of them
SAMPLES = "samples"  # STEP.txt
MAX_SAMPLE = MIB  # bytes of one of them
TENSORBOARD = "tb"
WANDB = "wandb"  # W&B's own folder
WANDB_ID = "wandb_id"  # of the run in W&B, over all restarts
TRACES = "profile"  # by gptjax.main --profile
REPORT = "report.html"
LOCK = "lock"  # held by the run that uses the folder


class WorkdirLock(FileLock):
    """Holds `workdir/lock` from construction to `release` or the death of the process."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        super().__init__(workdir / LOCK)

    def ensure(self) -> None:
        """Takes the lock as FileLock does; a UserError says which other run holds it."""
        try:
            super().ensure()
        except Held as holder:
            raise UserError(
                f"{self._workdir} is in use by another run ({holder}): two would overwrite each "
                f"other's files. Wait for it, stop it with kill -TERM and its process id, or give "
                f"this run another workdir (--config.workdir=...)."
            ) from None


def refuse_links(workdir: Path) -> None:
    """Raises UserError for a symbolic link in `workdir`: what is written there could go anywhere.

    W&B makes some of its own, in its folder.
    """
    for folder, folders, files in os.walk(workdir):
        for name in [*folders, *files]:
            if os.path.islink(path := os.path.join(folder, name)):
                raise UserError(
                    f"{path} is a symbolic link, which is not followed: a workdir from somebody "
                    f"else could have its files written anywhere. Move the files to where the link "
                    f"is; a workdir may itself be a link to another disk."
                )
        if Path(folder) == workdir and WANDB in folders:
            folders.remove(WANDB)


def save_config(config: ConfigDict, workdir: Path) -> None:
    """Writes the resolved configuration to `workdir/config.json`, atomically."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    write_atomically(workdir / CONFIG, text.encode())


def load_config(workdir: Path) -> ConfigDict:
    """Returns the `recipe` of `workdir/config.json`; keys that are newer than it are logged.

    Raises UserError if the file is missing or damaged, or has unknown keys.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise UserError(
            f"{workdir} is not the workdir of a run: it has no {CONFIG}. Give the folder that "
            f"`gptjax train` wrote to (config.workdir), for example runs/quickstart."
        )
    try:
        saved = read_json(path, MAX_CONFIG)
        config = recipe(saved, str(workdir))
    except UserError as error:
        raise UserError(
            f"{path} is damaged ({error}). Start the run again with its configuration: "
            f"that rewrites the file."
        ) from error
    values = leaves(config)
    if problems := unknown_keys(values):
        raise UserError(f"{path} was written by another version: " + "; ".join(problems))
    if problems := [*range_problems(values), *model_problems(config.model)]:
        raise UserError(f"{path} cannot be of a run: " + "; ".join(problems))
    stored = leaves(saved)
    if newer := [key for key in values if key not in stored and key not in MACHINE]:
        _log.info("%s is older than %s: they have their defaults", path, ", ".join(newer))
    return config


def read_metrics(workdir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns (lines of `workdir/metrics.jsonl`, text of incomplete lines).

    A run that is writing, or was killed, leaves half a line. Values that are not finite are None.
    Raises UserError if the file is larger than MAX_METRICS or has more lines than MAX_LINES.
    """
    path = workdir / METRICS
    lines: list[dict[str, Any]] = []
    damaged: list[str] = []
    for text, line in read_json_lines(path, MAX_METRICS) if path.is_file() else ():
        if len(lines) == MAX_LINES:
            raise UserError(f"{path} has over {MAX_LINES:,} lines: raise train.log_interval.")
        if mismatch(line, {"step": int}) or not 0 <= line["step"] < 1 << 53:
            damaged.append(text)
        else:
            lines.append({name: finite_or_none(value) for name, value in line.items()})
    return lines, damaged


def finite_or_none(value: Any) -> Any:
    """Returns `value`, or None for a number that is not finite, which JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
