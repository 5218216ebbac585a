"""The table of a sweep: a line of JSON a run, and what it says, as Markdown.

A row holds `date`, `commit`, `sweep`, `setting`, `seed`, `overrides` (of configs/base.py), `status`
(done or failed) and, of a run that is done, `n_params`, `n_params_non_embedding`, `tokens`,
`passes`, `seconds` (of training), `flops`, `val_loss` (nats a token), `bits_per_byte`,
`best_bits_per_byte`, `skipped_steps`, `checkpoints_kept` and `curve`: [step, tokens, seconds,
bits_per_byte] of each evaluation. A run that failed has its `reason` instead. `commit` is what is
checked out; `code`, a digest of the sources as they are, differs where they were changed since.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.flags import UserError
from data_pipeline.files import fsync_folder
from data_pipeline.token_store import TOKENIZER
from data_pipeline.tokenizer import Tokenizer
from gptjax import config as config_lib
from gptjax import history, model
from gptjax.model import GPTConfig

_log = logging.getLogger(__name__)

Row = dict[str, Any]


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row; it is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    with path.open("ab") as f:
        if f.tell() and path.read_bytes()[-1:] != b"\n":  # a row was cut short
            line = b"\n" + line
        f.write(line)
        f.flush()
        os.fsync(f.fileno())
    fsync_folder(path.parent)


def read(path: Path, sweep: str) -> dict[tuple[str, int], Row]:
    """Returns the rows of a sweep by (setting, seed), each the latest; without a file, none."""
    rows: dict[tuple[str, int], Row] = {}
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(text)
            if row["sweep"] == sweep:
                rows[row["setting"], row["seed"]] = row
        except (ValueError, KeyError, TypeError):
            _log.warning("%s: a line is not whole and left out: %.60s", path, text)
    return rows


def measured(workdir: Path) -> Row | None:
    """Returns what a run has come to, from its workdir; None if it has not reached its end."""
    try:
        run = history.read(workdir)
    except UserError:  # not one line yet
        return None
    config = config_lib.load(workdir)
    steps, bits = run.series("val/bits_per_byte")
    end = config.train.max_iters
    if not steps or steps[-1] != end:
        return None
    gpt = GPTConfig.from_config(config, Tokenizer.load(workdir / TOKENIZER).vocab_size)
    n_params, n_params_non_embedding = model.count_params(gpt)
    # Exact where train.log_interval divides the steps; the first step, which compiles, has no time.
    tokens = [round(t) for t in run.position("data/tokens_seen", steps) or []]
    seconds = [round(s, 3) for s in run.position("perf/train_seconds", steps) or []]
    known = [value for value in bits if value is not None]
    if not tokens or not seconds or bits[-1] is None:
        return None
    return {
        "n_params": n_params,
        "n_params_non_embedding": n_params_non_embedding,
        "tokens": tokens[-1],
        "passes": passes[0] if (passes := run.position("data/epoch", [end])) else None,
        "seconds": seconds[-1],
        "flops": tokens[-1] * model.flops_per_token(gpt),
        "val_loss": run.last("val/loss"),
        "bits_per_byte": bits[-1],
        "best_bits_per_byte": min(known),
        "skipped_steps": run.last("optim/skipped_steps"),
        "curve": [list(point) for point in zip(steps, tokens, seconds, bits, strict=True)],
    }


# ---- what the table says


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the standard deviation (n - 1); None for a single value."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), deviation


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> tuple[float, float | None] | None:
    """Returns the mean difference over the seeds that both have, and its standard error.

    Runs of a seed see the same batches, so the error is that of the differences: s / sqrt(n).
    """
    differences = [values[seed] - reference[seed] for seed in values if seed in reference]
    if not differences:
        return None
    mean, deviation = mean_and_deviation(differences)
    return mean, None if deviation is None else deviation / math.sqrt(len(differences))


def first_reached(xs: Sequence[float], ys: Sequence[float], target: float) -> float | None:
    """Returns the first x at which the line through (xs, ys) is at or below `target`, or None."""
    for i, y in enumerate(ys):
        if y <= target:
            if i == 0:
                return xs[0]
            share = (ys[i - 1] - target) / (ys[i - 1] - y)
            return xs[i - 1] + share * (xs[i] - xs[i - 1])
    return None


def summary(rows: Iterable[Row], settings: Sequence[str], reference: str) -> str:
    """Returns Markdown: the settings side by side, and when each was as good as `reference`.

    Args:
        rows: of one sweep.
        settings: in the order of the lines; the rest of the rows follows.
        reference: the setting that the others are compared with.

    Raises:
        UserError: there is no such setting.
    """
    rows = list(rows)
    names = list(dict.fromkeys([*settings, *(row["setting"] for row in rows)]))
    if reference not in names:
        raise UserError(f"--reference={reference}: the settings are {', '.join(names)}.")
    done = {
        name: {r["seed"]: r for r in rows if r["setting"] == name and r["status"] == "done"}
        for name in names
    }
    failed = {
        name: [r for r in rows if r["setting"] == name and r["status"] == "failed"]
        for name in names
    }
    lines = [
        f"| setting | runs | val bits per byte | difference to {reference} | parameters | tokens "
        "| passes | seconds | FLOPs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        count = f"{len(done[name])}" + (f" (+ {len(failed[name])} failed)" if failed[name] else "")
        lines.append(_cells(name, count, *_figures(done[name], done[reference], name == reference)))
    lines += ["", *_equal_loss(done, reference)]
    for name in names:
        lines += [f"\n{name}, seed {r['seed']}, failed: {r['reason']}" for r in failed[name]]
    return "\n".join(lines)


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _with_error(pair: tuple[float, float | None] | None, form: str) -> str:
    if pair is None:
        return "–"
    value, error = pair
    return format(value, form) + ("" if error is None else f" ± {error:.4f}")


def _figures(
    runs: Mapping[int, Row], reference: Mapping[int, Row], is_reference: bool
) -> list[str]:
    if not runs:
        return ["–"] * 7

    def mean(name: str) -> float:
        return float(np.mean([run[name] for run in runs.values()]))

    bits = {seed: run["bits_per_byte"] for seed, run in runs.items()}
    others = {seed: run["bits_per_byte"] for seed, run in reference.items()}
    return [
        _with_error(mean_and_deviation(list(bits.values())), ".4f"),
        "" if is_reference else _with_error(paired_difference(bits, others), "+.4f"),
        f"{mean('n_params'):,.0f}",
        f"{mean('tokens'):,.0f}",
        f"{mean('passes'):.2f}",
        f"{mean('seconds'):,.1f}",
        f"{mean('flops'):.3g}",
    ]


def _equal_loss(done: Mapping[str, Mapping[int, Row]], reference: str) -> list[str]:
    """Returns the table of when the mean curve of each setting is where the reference ended."""
    curves = {name: mean_curve(list(runs.values())) for name, runs in done.items() if runs}
    if reference not in curves:
        return [f"{reference} has no run that is done: nothing to compare with."]
    end = curves[reference][-1]
    lines = [
        f"Until {end[3]:.4f} bits per byte, where {reference} ended (mean curves, straight "
        "between evaluations):",
        "",
        "| setting | tokens | ratio | seconds | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, curve in curves.items():
        cells = []
        for axis in (1, 2):
            at = first_reached(curve[:, axis].tolist(), curve[:, 3].tolist(), end[3])
            form = ",.0f" if axis == 1 else ",.1f"
            cells += ["–", "–"] if at is None else [format(at, form), f"{at / end[axis]:.3f}"]
        lines.append(_cells(name, *cells))
    return lines


def mean_curve(runs: Sequence[Row]) -> np.ndarray:
    """Returns the mean over runs of (step, tokens, seconds, bits per byte), [evaluations, 4].

    Only evaluations that all of them made, and that were finite, count.
    """
    points = [{p[0]: p for p in run["curve"] if p[3] is not None} for run in runs]
    steps = sorted(set.intersection(*(set(p) for p in points)))
    return np.mean([[p[step] for step in steps] for p in points], axis=0)
