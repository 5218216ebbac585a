"""SIGKILL at any moment loses nothing: the end has the bits of a run that was left alone."""

from benchmarks.kill import KilledRun, kill_many


def test_25_kills_lose_nothing(debug_config, tmp_path):
    run = KilledRun(tmp_path, debug_config.data.cache_dir, steps=20, seed=1)
    assert kill_many(run, 25) >= 1  # compares each run that came to its end
    assert sum(run.kills.values()) >= 25
    assert len(run.kills) >= 4, run.kills  # various moments
