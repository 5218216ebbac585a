"""Every hostile file made by hand, and some by mutation, through benchmarks/attacks_files.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_hostile_files_are_refused_or_used_rightly():
    pytest.importorskip("tokenizers", reason="needs the extra `export`")
    command = [sys.executable, "-m", "benchmarks.attacks_files", "--cases=100", "--seed=1"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "0 failures" in done.stdout
