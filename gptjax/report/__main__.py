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
    further = argv[1:]  # --compare a b: absl leaves b over
    if further and not values.compare:
        raise UserError(f"what is {' '.join(further)}? Runs to compare with come after --compare.")
    compare = [Path(folder) for folder in (*values.compare, *further)]
    folders = [*([] if values.workdir is None else [Path(values.workdir)]), *compare]
    if not folders:
        raise UserError("say which run: --workdir=runs/quickstart, or --compare runs/a runs/b.")
    first, *others = folders
    out = write_report(first, others, None if values.out is None else Path(values.out))
    print(f"{out} ({out.stat().st_size / 1024:,.0f} KiB)")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run, finished or not, or of a sweep.")
    flags.DEFINE_multi_string("compare", [], "Folders of runs, or sweeps, to put beside it.")
    flags.FLAGS.set_gnu_getopt(True)  # other flags may follow the folders of --compare
    flags.DEFINE_string("out", None, "The page; without: report.html in the first folder.")
    cli.run_argv(_main)
