"""Copies in host memory: one of each array, which no later step changes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Shards, which JAX puts together in an array of its own, stand for a GPU, from which it copies so.
COPIES = """
import sys, tracemalloc
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from gptjax.step import host_copy

mesh = jax.make_mesh((2,), ("fsdp",))
spec = PartitionSpec("fsdp") if sys.argv[1] == "sharded" else PartitionSpec()
sharding = NamedSharding(mesh, spec)
expected = np.arange(4_000_000, dtype=np.float32)
tree = {name: jax.device_put(expected, sharding) for name in "ab"}
tracemalloc.start()
before, _ = tracemalloc.get_traced_memory()
copies = host_copy(tree)
_, peak = tracemalloc.get_traced_memory()
tracemalloc.stop()
assert 1.9 < (peak - before) / expected.nbytes < 2.1, (peak - before) / expected.nbytes
step = jax.jit(lambda tree: jax.tree.map(lambda x: -x, tree), donate_argnums=0)
for _ in range(3):
    tree = step(tree)
jax.block_until_ready(tree)
for copy in copies.values():
    np.testing.assert_array_equal(copy, expected)
"""


@pytest.mark.parametrize("placement", ["sharded", "replicated"])
def test_one_copy_of_each_array_which_donation_does_not_change(placement, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    command = [sys.executable, "-c", COPIES, placement]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
