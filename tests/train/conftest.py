"""A run of a few steps, which the tests of this folder change."""

import copy

import pytest


@pytest.fixture
def config(debug_config, tmp_path):
    """configs/debug.py for 8 steps, each logged, without samples, in a workdir of its own."""
    config = copy.deepcopy(debug_config)
    config.workdir = str(tmp_path / "run")
    config.train.max_iters = 8
    config.train.log_interval = 1
    config.sample.prompts = ()
    return config
