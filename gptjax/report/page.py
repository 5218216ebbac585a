"""Renders one page about a run, or several side by side: it opens from disk, offline.

The folder of a sweep stands for all its runs; those that differ only in the seed share a colour.
"""

import base64
import dataclasses
import datetime
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from configs.errors import UserError
from data_pipeline.files import write_atomically
from gptjax.common.workdir import REPORT
from gptjax.evaluate.published import NOTES
from gptjax.report import run_history, sections, sweep_results
from gptjax.report.charts import page_data
from gptjax.report.run_history import History

_FOLDER = Path(__file__).parent
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}


def write_report(workdir: Path, compare: Sequence[Path] = (), out: Path | None = None) -> Path:
    """Writes the page atomically to `out`, or `workdir`/report.html, and returns its path.

    The folders are workdirs of runs, which may be unfinished, or folders of sweeps.

    Raises:
        UserError: if one of the folders has no metrics.jsonl, or the page cannot be written.
    """
    out = out or workdir / REPORT
    folders = (workdir, *compare)
    runs = [run_history.read(path) for folder in folders for path in run_history.workdirs(folder)]
    page = _render(runs, folders)
    try:
        write_atomically(out, page.encode(errors="replace"))  # JSON can hold lone surrogates
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}.") from error
    return out


def _render(runs: list[History], folders: Sequence[Path]) -> str:
    """Returns the page; its Content-Security-Policy allows its own style and script only."""
    names = [run.name for run in runs]
    runs = [  # numbered where folder names are equal
        dataclasses.replace(run, name=f"{run.name} ({i})") if names.count(run.name) > 1 else run
        for i, run in enumerate(runs, 1)
    ]

    def per_run(section: Callable[[History], Any]) -> list[tuple[str, Any]]:
        return [(run.name, content) for run in runs if (content := section(run))]

    style = _static("vendor/uplot/uPlot.min.css") + _static("report.css")
    licence = f"/*\n{_static('vendor/uplot/LICENSE')}*/\n"
    script = licence + _static("vendor/uplot/uPlot.iife.min.js") + _static("report.js")
    sweeps = [(folder.resolve().name, sweep_results.of_folder(folder)) for folder in folders]
    return _TEMPLATES.get_template("report.html").render(
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        title=" and ".join(folder.resolve().name for folder in folders),
        written=datetime.datetime.now(datetime.UTC),
        sweeps=[(name, *summary) for name, summary in sweeps if summary],
        summary=sections.summary(runs),
        notes=per_run(lambda run: run.notes),
        data=page_data(runs),
        several=len(runs) > 1,
        differences=sections.differences(runs),
        validation=per_run(sections.validation),
        evaluations=sections.evaluations(runs),
        benchmarks=sections.benchmarks(runs),
        benchmark_notes=NOTES,
        skipped=per_run(sections.skipped),
        samples=per_run(sections.samples),
        config=per_run(sections.config),
    )


def _static(name: str) -> str:
    return (_FOLDER / "static" / name).read_text()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
