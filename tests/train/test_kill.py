"""SIGKILL at any moment loses nothing: the end has the bits of a run that was left alone."""

import pytest

from benchmarks.kill import KilledRun, kill_many


@pytest.mark.parametrize(
    ("n_kills", "steps"), [(2, 12), pytest.param(25, 20, marks=pytest.mark.slow)]
)
def test_kills_lose_nothing(debug_config, tmp_path, n_kills, steps):
    run = KilledRun(tmp_path, debug_config.data.cache_dir, steps=steps, seed=1)
    assert kill_many(run, n_kills) >= 1  # compares each run that came to its end
    assert sum(run.kills.values()) >= n_kills
    assert len(run.kills) >= min(n_kills // 2, 4), run.kills  # various moments
