"""One page about a run, or several side by side, from what they wrote: opens from disk, offline.

    python -m gptjax.report --workdir=runs/quickstart --compare runs/other runs/third
    python -m gptjax.report --compare runs/one runs/other
    python -m gptjax.report --workdir=runs/sweeps/example

The folder of a sweep stands for all its runs; those that differ in the seed only share a colour.
"""

import base64
import dataclasses
import datetime
import hashlib
import html
import json
import string
from collections.abc import Sequence
from pathlib import Path

from configs.errors import UserError
from data_pipeline.files import write_atomically
from gptjax.common.workdir import REPORT
from gptjax.report import run_history, tables
from gptjax.report.charts import page_data
from gptjax.report.run_history import History


def write_report(workdir: Path, compare: Sequence[Path] = (), out: Path | None = None) -> Path:
    """Writes the page, whole or not at all, and returns its path; reads files only.

    Args:
        workdir: of the run; it may be unfinished.
        compare: workdirs of runs to put beside it; here and there, the folder of a sweep stands for
            the workdirs in it.
        out: the page; None: `workdir`/report.html.

    Raises:
        UserError: if one of the folders has no metrics.jsonl, or the page cannot be written.
    """
    out = out or workdir / REPORT
    folders = (workdir, *compare)
    page = render(
        [run_history.read(path) for folder in folders for path in run_history.workdirs(folder)],
        title=" and ".join(folder.resolve().name for folder in folders),
        sweeps="".join(tables.sweep(folder) for folder in folders),
    )
    try:
        write_atomically(out, page.encode(errors="replace"))  # JSON can hold halves of characters
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}.") from error
    return out


def render(runs: list[History], *, title: str, sweeps: str) -> str:
    """Returns the page, self-contained; its content policy lets nothing but its own script run.

    Args:
        runs: what it is about.
        title: its heading.
        sweeps: comes first, from `tables.sweep`; "" for none.
    """
    runs = _distinct(runs)
    style = _static("report.css")
    script = _static("scales.js") + _static("report.js")
    now = datetime.datetime.now(datetime.UTC)
    data = json.dumps(page_data(runs), allow_nan=False, separators=(",", ":"))
    return string.Template(_static("report.html")).substitute(
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        title=html.escape(title),
        subtitle=f"Written {now:%Y-%m-%d %H:%M} UTC from metrics.jsonl, config.json and samples/.",
        summary=sweeps + tables.summary(runs) + tables.notes(runs),
        data=data.replace("<", r"\u003c"),  # no text may end the element that holds it
        sections="\n".join(filter(None, (section(runs) for section in tables.SECTIONS))),
    )


def _distinct(runs: list[History]) -> list[History]:
    """Names runs of equal folder names by number, so that a legend tells them apart."""
    names = [run.name for run in runs]
    return [
        dataclasses.replace(run, name=f"{run.name} ({i})") if names.count(run.name) > 1 else run
        for i, run in enumerate(runs, 1)
    ]


def _static(name: str) -> str:
    return (Path(__file__).with_name("static") / name).read_text()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
