"""Writes one self-contained HTML page about a run, several runs, or a sweep; or their numbers.

gptjax report runs/quickstart
gptjax report runs/one runs/other runs/third
gptjax report runs/sweeps/rates
gptjax report runs/* --rows=runs.csv
"""

from pathlib import Path

from absl import flags

from configs import cli
from configs.errors import UserError
from gptjax.report import rows, run_history
from gptjax.report.page import write_report


def _main(argv: list[str]) -> None:
    values = flags.FLAGS
    folders = [Path(folder) for folder in (*values.compare, *argv[1:])]
    if values.workdir is not None:
        folders.insert(0, Path(values.workdir))
    if not folders:
        raise UserError("name the folder of a run, or of several: gptjax report runs/quickstart")
    if values.rows is not None:
        runs = [run_history.read(run) for f in folders for run in run_history.workdirs(f)]
        print(f"{values.rows} ({rows.write(runs, Path(values.rows)):,} rows of {len(runs)} runs)")
        return
    out = write_report(folders[0], folders[1:], None if values.out is None else Path(values.out))
    print(f"{out} ({out.stat().st_size / 1024:,.0f} KiB)")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run, finished or not, or of a sweep.")
    flags.DEFINE_multi_string("compare", [], "Folders of runs, or sweeps, to put beside it.")
    flags.DEFINE_string("out", None, "The page; default: report.html in the first folder.")
    flags.DEFINE_string("rows", None, "Instead of the page: all metrics, as .csv or .parquet.")
    cli.run_argv(_main, positional=True)
