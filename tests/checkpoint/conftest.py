"""A run that has saved step 1, for tests of the saves after it; copies of saved workdirs."""

import shutil

import pytest
from helpers import state_of

from gptjax.checkpoint import Checkpoints, RunProgress, manager


@pytest.fixture
def checkpoints(debug_config, store, initial, tmp_path, monkeypatch):
    """The checkpoints of `tmp_path/run`, which holds step 1; the last tries follow at once."""
    monkeypatch.setattr(manager, "_LAST_DELAY", 0.0)
    checkpoints = Checkpoints(tmp_path / "run", debug_config, store)
    checkpoints.save(state_of(initial, 1), RunProgress(), val_loss=5.0)
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


@pytest.fixture
def workdir(saved, tmp_path):
    """A copy of the workdir that the fixture `saved` of a file has made, to be changed."""
    return shutil.copytree(saved, tmp_path / "run")
