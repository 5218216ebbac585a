"""Verifies every checkpoint of a run.

python -m gptjax.checkpoint verify --workdir=runs/quickstart
"""

import sys
from pathlib import Path

from absl import flags

from configs import cli
from configs.errors import UserError
from gptjax.checkpoint import verify


def _main(arguments: list[str]) -> None:
    if arguments[1:] != ["verify"]:
        raise UserError("name the command: python -m gptjax.checkpoint verify --workdir=...")
    results = verify(Path(flags.FLAGS.workdir))
    for step, problem in results.items():
        print(f"{step:>9}  {'DAMAGED: ' + problem if problem else 'good'}")
    if any(results.values()):
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    cli.run_argv(_main, positional=True)
