"""Trains the settings x seeds that a file declares, and prints the comparison as Markdown.

gptjax sweep rates.py --jobs=2
gptjax sweep rates.py --summary --reference=recipe

where rates.py is, for example:

    from configs import debug
    from gptjax.sweep import sweep


    def get_config():
        settings = {"recipe": {}, "slower": {"optim.learning_rate": 3e-3}}
        return sweep(base=debug.get_config(), settings=settings, seeds=(1, 2))

All runs are validated before the first starts. Each gets a workdir in runs/sweeps/NAME/ with a
log.txt, and a row in results.jsonl (see report/sweep_results.py) with its results, or the reason
why it failed. After a stop or a kill, the same command resumes: it skips runs that have
a row. `gptjax report runs/sweeps/NAME` draws the runs.
"""

import logging
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs.cli import define_config, run
from gptjax.common.workdir import WorkdirLock
from gptjax.report import sweep_results
from gptjax.sweep import trials
from gptjax.sweep.runner import Runner

_log = logging.getLogger(__name__)


def _main(sweep: ConfigDict) -> None:
    jax.config.update("jax_platforms", "cpu")  # in this process: a GPU is for the runs
    values = flags.FLAGS
    name = Path(config_flags.get_config_filename(values["sweep"])).stem
    folder = Path("runs/sweeps") / name
    table = Path(values.out) if values.out else folder / sweep_results.TABLE
    declared = trials.declared_trials(sweep, folder)
    settings = list(dict.fromkeys(trial.setting for trial in declared))
    if not values.summary:
        with WorkdirLock(folder):
            rows = sweep_results.read(table, name)
            trials.refuse_changed(declared, rows)
            sweep_results.declare(folder, settings)
            kept = {key for key, row in rows.items() if row["status"] == "done" or not values.retry}
            waiting = [trial for trial in declared if trial.key not in kept]
            for trial in declared:  # a kill can come between a row and the removal
                if rows.get(trial.key, {}).get("checkpoints_kept") is False:
                    trial.remove_checkpoints()
            _log.info("%s: %d of %d runs are pending.", name, len(waiting), len(declared))
            trials.prepare_data(waiting)
            runner = Runner(
                waiting, name=name, table=table, jobs=values.jobs, keep=values.keep_checkpoints
            )
            if not runner.run():
                return
    rows = sweep_results.read(table, name)
    summary = sweep_results.summary(rows.values(), settings, values.reference or settings[0])
    print(sweep_results.markdown(*summary))


if __name__ == "__main__":
    define_config("sweep", "File that declares a sweep, such as rates.py.")
    flags.DEFINE_string("out", None, "The table; default: runs/sweeps/NAME/results.jsonl.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time; the cores are divided among them.")
    flags.DEFINE_bool("retry", False, "Repeat runs that failed.")
    flags.DEFINE_bool("keep_checkpoints", False, "Keep the checkpoints of finished runs.")
    flags.DEFINE_bool("summary", False, "Only print the summary of the table.")
    flags.DEFINE_string("reference", None, "Setting to compare with; default: the first.")
    run(_main, "sweep")
