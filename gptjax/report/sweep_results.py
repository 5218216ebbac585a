"""The results of a sweep: one line of JSON per run, and tables that compare its settings.

A row holds `date`, `commit`, `code`, `sweep`, `setting`, `seed`, `overrides` (of configs/base.py)
and `status` (done or failed). A run that is done adds the figures of `measured` and
`checkpoints_kept`, a failed one its `reason`. `commit` is what is checked out; `code`, a digest of
the sources as they are, differs where they were changed since.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import DataError, UserError
from configs.read import MIB, mismatch, read_json, read_json_lines
from data_pipeline.files import fsync, write_atomically
from data_pipeline.token_store import TOKENIZER
from data_pipeline.tokenizer import Tokenizer
from gptjax.common.workdir import load_config
from gptjax.model import GPTConfig, count_params, flops_per_token
from gptjax.report import run_history
from gptjax.report.table import Table

_log = logging.getLogger(__name__)

Row = dict[str, Any]
TABLE = "results.jsonl"
_DECLARED = "sweep.json"
_MAX_TABLE = 32 * MIB  # bytes: 10,000 rows
_ROW = {"sweep": str, "setting": str, "seed": int, "status": str, "code": str}
_FIGURES = ("n_params", "tokens", "passes", "seconds", "flops", "bits_per_byte")
_BY_STATUS: dict[str, Any] = {
    "done": dict.fromkeys(_FIGURES, float) | {"curve": [[float, float, float, (float, None)]]},
    "failed": {"reason": str},
}
_UNKNOWN = "–"


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Appends a row; it is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    with path.open("ab") as f:
        if f.tell() and path.read_bytes()[-1:] != b"\n":  # the last row was interrupted
            line = b"\n" + line
        f.write(line)
        f.flush()
        os.fsync(f.fileno())
    fsync(path.parent)


def read(path: Path, sweep: str) -> dict[tuple[str, int], Row]:
    """Returns the latest rows of a sweep by (setting, seed); none without a file."""
    rows: dict[tuple[str, int], Row] = {}
    for text, row in read_json_lines(path, _MAX_TABLE) if path.is_file() else ():
        if not _is_row(row):
            _log.warning("%s: skipped an incomplete line: %.60s", path, text)
        elif row["sweep"] == sweep:
            rows[row["setting"], row["seed"]] = row
    return rows


def _is_row(row: Any) -> bool:
    if mismatch(row, _ROW) or mismatch(row, _BY_STATUS.get(row["status"], {})):
        return False
    return row["status"] != "done" or (bool(row["curve"]) and row["curve"][-1][3] is not None)


def measured(workdir: Path) -> Row | str | None:
    """Returns the figures of a run; a reason if it ended without; None if it has not ended.

    They are `n_params`, `n_params_non_embedding`, `tokens`, `passes`, `seconds` (of training),
    `flops`, `val_loss` (nats a token), `bits_per_byte`, `best_bits_per_byte`, `skipped_steps`, and
    `curve`: [step, tokens, seconds, bits_per_byte] of each evaluation.
    """
    try:
        run = run_history.read(workdir)
    except UserError:  # not one line yet
        return None
    config = load_config(workdir)
    steps, bits = run.series("val/bits_per_byte")
    end = config.train.max_iters
    if not steps or steps[-1] != end:
        return None
    if bits[-1] is None:
        return f"its val loss after the last step, {end:,}, is not finite"
    tokens_seen = run.position("data/tokens_seen", steps)
    train_seconds = run.position("perf/train_seconds", steps)
    passes = run.position("data/epoch", [end])
    if tokens_seen is None or train_seconds is None or passes is None:
        return "metrics.jsonl has no line of training"
    model_config = GPTConfig.from_config(config, Tokenizer.load(workdir / TOKENIZER).vocab_size)
    n_params, n_params_non_embedding = count_params(model_config)
    # Exact where train.log_interval divides the steps; the first step, which compiles, has no time.
    tokens = [round(t) for t in tokens_seen]
    seconds = [round(s, 3) for s in train_seconds]
    return {
        "n_params": n_params,
        "n_params_non_embedding": n_params_non_embedding,
        "tokens": tokens[-1],
        "passes": passes[0],
        "seconds": seconds[-1],
        "flops": tokens[-1] * flops_per_token(model_config),
        "val_loss": run.last("val/loss"),
        "bits_per_byte": bits[-1],
        "best_bits_per_byte": min(value for _, value in run.known("val/bits_per_byte")),
        "skipped_steps": run.last("optim/skipped_steps"),
        "curve": [list(point) for point in zip(steps, tokens, seconds, bits, strict=True)],
    }


def declare(folder: Path, settings: Sequence[str]) -> None:
    """Records the settings of a sweep, in their order, in its folder."""
    text = json.dumps({"settings": list(settings)}, indent=1) + "\n"
    write_atomically(folder / _DECLARED, text.encode())


def of_folder(folder: Path) -> tuple[list[Table], list[str]] | None:
    """Returns the `summary` of a sweep's folder against its first setting; None for others."""
    try:
        settings = read_json(folder / _DECLARED, _MAX_TABLE, {"settings": [str]})["settings"]
        rows = read(folder / TABLE, folder.name)
    except DataError:
        return None
    return summary(rows.values(), settings, settings[0]) if settings else None


def summary(
    rows: Iterable[Row], settings: Sequence[str], reference: str
) -> tuple[list[Table], list[str]]:
    """Returns tables that compare the settings at their end and at equal loss, and notes.

    `rows` are of one sweep, `settings` the order of the lines (other settings follow), `reference`
    the setting to compare with.

    Raises:
        UserError: if `reference` is not a setting.
    """
    rows = list(rows)
    names = list(dict.fromkeys([*settings, *(row["setting"] for row in rows)]))
    if reference not in names:
        raise UserError(f"--reference={reference}: the settings are {', '.join(names)}.")
    done: dict[str, dict[int, Row]] = {name: {} for name in names}
    failed: dict[str, list[Row]] = {name: [] for name in names}
    for row in rows:
        if row["status"] == "done":
            done[row["setting"]][row["seed"]] = row
        elif row["status"] == "failed":
            failed[row["setting"]].append(row)
    lines = []
    for name in names:
        count = str(len(done[name]))
        if failed[name]:
            count += f" (+ {len(failed[name])} failed)"
        lines.append([name, count, *_figures(done[name], done[reference], name == reference)])
    head = ["setting", "runs", "val bits per byte", f"difference to {reference}", "parameters"]
    head += ["tokens", "passes", "seconds", "model FLOPs"]
    notes = [
        f"{name}, seed {row['seed']}, failed: {row['reason']}"
        for name in names
        for row in failed[name]
    ]
    if len(codes := {row["code"] for row in rows}) > 1:
        notes.append(f"These runs used {len(codes)} versions of the code (`code` in the rows).")
    return [Table(head, lines), _equal_loss(done, reference)], notes


def markdown(tables: Iterable[Table], notes: Iterable[str]) -> str:
    """Returns the tables and notes of `summary` as Markdown."""
    return "\n\n".join([*(table.markdown() for table in tables), *notes])


def _mean(values: Sequence[float], form: str, *, spread: bool = False) -> str:
    """Returns the mean ± its standard error, or ± the values' standard deviation (n - 1)."""
    if not values:
        return _UNKNOWN
    mean = format(float(np.mean(values)), form)
    if len(values) == 1:
        return mean
    deviation = float(np.std(values, ddof=1))
    return f"{mean} ± {deviation if spread else deviation / math.sqrt(len(values)):.4f}"


def _figures(
    runs: Mapping[int, Row], reference: Mapping[int, Row], is_reference: bool
) -> list[str]:
    if not runs:
        return [_UNKNOWN] * 7

    def mean(name: str) -> float:
        return float(np.mean([run[name] for run in runs.values()]))

    bits = {seed: run["bits_per_byte"] for seed, run in runs.items()}
    # Runs of a seed see the same batches, so the error is that of their differences.
    differences = [bits[s] - reference[s]["bits_per_byte"] for s in bits if s in reference]
    return [
        _mean(list(bits.values()), ".4f", spread=True),
        "" if is_reference else _mean(differences, "+.4f"),
        f"{mean('n_params'):,.0f}",
        f"{mean('tokens'):,.0f}",
        f"{mean('passes'):.2f}",
        f"{mean('seconds'):,.1f}",
        f"{mean('flops'):.3g}",
    ]


def _equal_loss(done: Mapping[str, Mapping[int, Row]], reference: str) -> Table:
    """Returns the tokens and seconds until each run reached the reference's loss at its end.

    Runs of a seed are compared. Ratios are means over seeds, with their standard error; `within`
    is the most tokens between two evaluations about a crossing, in percent of its own.
    """
    ends = {seed: run["curve"][-1] for seed, run in done[reference].items()}
    lines = []
    for name, runs in done.items():
        common = [seed for seed in runs if seed in ends]
        crossings = [_crossing(runs[seed]["curve"], ends[seed][3]) for seed in common]
        reached = [crossing for crossing in crossings if crossing is not None]
        cells = [_UNKNOWN] * 5
        if common and len(reached) == len(common):  # a mean over some would flatter
            cells = []
            for i, form in ((0, ",.0f"), (1, ",.1f")):
                ratios = [at[i] / ends[s][1 + i] for at, s in zip(reached, common, strict=True)]
                cells.append(format(float(np.mean([at[i] for at in reached])), form))
                cells.append(_mean(ratios, ".3f"))
            cells.append(f"{max(100 * at[2] / at[0] for at in reached):.0f} %")
        lines.append([name, f"{len(reached)} of {len(common)}", *cells])
    return Table(
        ["setting", "reached", "tokens", "ratio", "seconds", "ratio", "within"],
        lines,
        caption=f"Until each run was as good as that of {reference} with its seed at the end "
        "(straight between evaluations):",
    )


def _crossing(curve: Sequence[Sequence[Any]], target: float) -> tuple[float, float, float] | None:
    """Returns (tokens, seconds) at which a run first reached `target`; None if never.

    The third is the tokens between the evaluations before and after it.
    """
    points = np.array([point[1:] for point in curve if point[3] is not None])
    reached = points[:, 2] <= target
    if not reached.any():
        return None
    first = int(reached.argmax())
    tokens, seconds, bits = points[max(first - 1, 0) : first + 1][::-1].T  # bits increase
    between = points[first, 0] - (points[first - 1, 0] if first else 0)
    at = np.interp(target, bits, tokens), np.interp(target, bits, seconds)
    return float(at[0]), float(at[1]), float(between)
