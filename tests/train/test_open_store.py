"""Which token store a run gets; that of a run without its source is in test_resume.py."""

import jax
import pytest

from configs.errors import DataError
from gptjax.train.open_store import open_store


def test_several_processes_do_not_make_a_store(config, store, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert open_store(config).path == store.path
    config.data.cache_dir = str(tmp_path / "stores")
    with pytest.raises(DataError, match="gptjax prepare"):
        open_store(config)
