"""The memory of a process does not grow with its steps."""

import copy
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# In a process of its own, where nothing else allocates.
PROGRAM = """
import array, json, os, sys
from configs import cli, debug
from gptjax.train import trainer
config = debug.get_config()
config.workdir, config.data.cache_dir = sys.argv[1:3]
config.train.max_iters = int(sys.argv[3])
config.eval.eval_interval = 50
config.sample.prompts = ()
config.log.tensorboard = True
resident = array.array("q", bytes(8 * config.train.max_iters))  # allocated before the steps
dispatch = trainer.Trainer._dispatch
def watch(run):
    with open("/proc/self/statm") as file:
        resident[run.step] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return dispatch(run)
trainer.Trainer._dispatch = watch
cli.call(trainer.train_and_evaluate, config)
print(json.dumps(resident.tolist()))
"""


# By then what was needed to compile has been given back, which would hide growth, and the heap has
# found its size.
SETTLED = 9000
WINDOW = 500


@pytest.mark.slow
def test_memory_stays_within_a_percent_over_5000_steps(debug_config, tmp_path):
    steps = SETTLED + 5000 + WINDOW
    config = copy.deepcopy(debug_config)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), config.data.cache_dir, str(steps)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        # Of arenas, threads take any, and give their tops back now and then: 3 % up and down.
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},
    )
    resident = json.loads(result.stdout.splitlines()[-1])
    assert len(resident) == steps and min(resident) > 0
    # Medians, for a save holds a copy for a moment.
    medians = [
        statistics.median(resident[i : i + WINDOW]) / 2**20 for i in range(SETTLED, steps, WINDOW)
    ]
    print(f"MiB every {WINDOW} steps from {SETTLED} on:", [round(m, 1) for m in medians])
    assert medians[-1] < 1.01 * medians[0]
    assert medians[-1] < 1.01 * min(medians)  # nor does a drop hide growth
