"""Verifies every checkpoint of a run.

gptjax checkpoint verify runs/quickstart
"""

import sys
from pathlib import Path

from absl import flags

from configs import cli
from configs.errors import UserError
from gptjax.checkpoint import verify


def _main(arguments: list[str]) -> None:
    command, *folders = arguments[1:] or [""]
    if flags.FLAGS.workdir is not None:
        folders.append(flags.FLAGS.workdir)
    if command != "verify" or len(folders) != 1:
        raise UserError("name the command and one run: gptjax checkpoint verify runs/quickstart")
    results = verify(Path(*folders))
    for step, problem in results.items():
        print(f"{step:>9}  {'DAMAGED: ' + problem if problem else 'good'}")
    if any(results.values()):
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.")
    cli.run_argv(_main, positional=True)
