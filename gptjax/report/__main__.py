"""Writes one self-contained HTML page about a run, several runs, or a sweep.

python -m gptjax.report --workdir=runs/quickstart --compare runs/other runs/third
python -m gptjax.report --compare runs/one runs/other
python -m gptjax.report --workdir=runs/sweeps/example
"""

from pathlib import Path

from absl import flags

from configs import cli
from configs.errors import UserError
from gptjax.report.page import write_report


def _main(argv: list[str]) -> None:
    values = flags.FLAGS
    positional = argv[1:]  # of `--compare a b`, absl leaves b here
    if positional and not values.compare:
        raise UserError(f"unexpected {' '.join(positional)}: list runs to compare after --compare.")
    folders = [Path(folder) for folder in (*values.compare, *positional)]
    if values.workdir is not None:
        folders.insert(0, Path(values.workdir))
    if not folders:
        raise UserError("no run given: use --workdir=runs/quickstart or --compare runs/a runs/b.")
    out = write_report(folders[0], folders[1:], None if values.out is None else Path(values.out))
    print(f"{out} ({out.stat().st_size / 1024:,.0f} KiB)")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run, finished or not, or of a sweep.")
    flags.DEFINE_multi_string("compare", [], "Folders of runs, or sweeps, to put beside it.")
    flags.DEFINE_string("out", None, "The page; default: report.html in the first folder.")
    cli.run_argv(_main, positional=True)
