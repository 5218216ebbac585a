"""Runs settings x seeds that a file declares, and prints the comparison.

python -m gptjax.sweep --sweep=benchmarks/sweeps/example.py
python -m gptjax.sweep --sweep=benchmarks/sweeps/example.py --summary --reference=recipe
"""

import logging
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs.cli import define_config, run
from gptjax.common.lock import WorkdirLock
from gptjax.report import sweep_results
from gptjax.sweep import trials
from gptjax.sweep.runner import Sweep, _remove_checkpoints

_log = logging.getLogger(__name__)


def main(
    sweep: ConfigDict,
    *,
    name: str,
    out: Path | None,
    jobs: int,
    retry: bool,
    keep_checkpoints: bool,
    only_summary: bool,
    reference: str | None,
) -> None:
    """Runs what has no row yet, and prints the summary.

    Raises:
        UserError: what is declared cannot be run; nothing was started then.
    """
    jax.config.update("jax_platforms", "cpu")  # in this process: a GPU belongs to the runs
    folder = Path("runs/sweeps") / name
    table = out or folder / sweep_results.TABLE
    declared = trials.declared_trials(sweep, folder)
    settings = list(dict.fromkeys(trial.setting for trial in declared))
    if not only_summary:
        folder.mkdir(parents=True, exist_ok=True)
        lock = WorkdirLock(folder)
        try:
            rows = sweep_results.read(table, name)
            trials.refuse_others(declared, rows)
            sweep_results.declare(folder, settings)
            kept = {key for key, row in rows.items() if row["status"] == "done" or not retry}
            waiting = [trial for trial in declared if (trial.setting, trial.seed) not in kept]
            for trial in declared:  # a kill may have come between a row and its cleaning up
                if rows.get((trial.setting, trial.seed), {}).get("checkpoints_kept") is False:
                    _remove_checkpoints(trial)
            _log.info("%s: %d runs, %d to be made.", name, len(declared), len(waiting))
            trials.prepare_data(waiting)
            runs = Sweep(waiting, name=name, table=table, jobs=jobs, keep=keep_checkpoints)
            if not runs.run():
                return
        finally:
            lock.release()
    rows = sweep_results.read(table, name)
    print(
        sweep_results.markdown(
            *sweep_results.summary(rows.values(), settings, reference or settings[0])
        )
    )


if __name__ == "__main__":
    define_config("sweep", "File that declares a sweep, such as benchmarks/sweeps/example.py.")
    flags.DEFINE_string("out", None, "The table; without: runs/sweeps/NAME/results.jsonl.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time; the cores are shared out among them.")
    flags.DEFINE_bool("retry", False, "Make runs that failed again.")
    flags.DEFINE_bool("keep_checkpoints", False, "Keep them when a run is done.")
    flags.DEFINE_bool("summary", False, "Only print the summary of what is in the table.")
    flags.DEFINE_string("reference", None, "Setting to compare with; without: the first.")

    def _main(sweep: ConfigDict) -> None:
        values = flags.FLAGS
        main(
            sweep,
            name=Path(config_flags.get_config_filename(values["sweep"])).stem,
            out=None if values.out is None else Path(values.out),
            jobs=values.jobs,
            retry=values.retry,
            keep_checkpoints=values.keep_checkpoints,
            only_summary=values.summary,
            reference=values.reference,
        )

    run(_main, "sweep")
