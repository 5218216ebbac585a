"""Resuming on more or fewer devices, in one process or in two."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import bits

from gptjax.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]

COMMON = """
import json, os, sys
sys.path[:0] = [{root!r}, {tests!r}]
os.environ["JAX_PLATFORMS"] = "cpu"
import jax, pathlib
jax.config.update("jax_num_cpu_devices", {devices})
if {processes} > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize({address!r}, {processes}, int(sys.argv[1]))
import numpy as np
import helpers as t
from configs import debug
from data_pipeline.packing import PackedRows
from data_pipeline.loader import BatchIterator
from data_pipeline.token_store import TokenStore
from gptjax.checkpoint import digests, manager
from gptjax.model.config import GPTConfig
from gptjax.step.multihost import host_copy
from gptjax.step.sharding import make_mesh, place_batch
from gptjax.step.train_step import StepFunctions

store, root = TokenStore.open({store!r}), pathlib.Path({folder!r})

def make(fsdp, devices=None, **changes):
    config = debug.get_config()
    config.mesh.fsdp = fsdp
    config.checkpoint.keep_latest = 100
    for key, value in changes.items():
        config.train[key] = value
    model_config = GPTConfig.from_config(config, store.tokenizer.vocab_size)
    mesh = make_mesh(fsdp, devices)
    return config, StepFunctions(config, model_config, store.tokenizer.token_bytes, mesh)

def place(state, steps):
    return jax.tree.map(jax.device_put, state, steps.state_shardings)

def train(config, steps, state, progress, n):
    rows = PackedRows(store.split("train"), block_size=config.model.block_size, seed=config.seed,
                      bos_id=store.tokenizer.bos_id, segments=False)
    batches = BatchIterator(
        rows, batch_size=config.train.batch_size,
        micro_steps=config.train.gradient_accumulation_steps, state=progress.data_state,
        host=jax.process_index(), n_hosts=jax.process_count(),
        place=lambda batch: place_batch(steps.batch_sharding, batch))
    losses = []
    for _ in range(n):
        state, metrics = steps.train_step(state, next(batches))
        losses.append(float(metrics["nats"]) / float(metrics["n_targets"]))
    return state, manager.RunProgress(data_state=batches.state), losses

def save(workdir, config, state, progress):
    checkpoints = manager.Checkpoints(workdir, config, store)
    checkpoints.finish(state, progress)
    checkpoints.close()

def restore(workdir, config, steps):
    checkpoints = manager.Checkpoints(workdir, config, store)
    restored = checkpoints.restore(steps)
    checkpoints.close()
    return restored
"""


def start(code, store, folder, *, devices=1, processes=1, process=0, address=""):
    values = {"root": str(ROOT), "tests": str(ROOT / "tests"), "store": str(store.path)}
    values |= {"folder": str(folder), "devices": devices, "processes": processes}
    return subprocess.Popen(
        [sys.executable, "-c", COMMON.format(**values, address=address) + code, str(process)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
    )


def results(processes):
    """The JSON that each process prints last."""
    try:
        ended = [(p, *p.communicate(timeout=300)) for p in processes]
    finally:
        for p in processes:
            p.kill()
    for p, _, errors in ended:
        assert p.returncode == 0, errors[-5000:]
    return [json.loads(out.splitlines()[-1]) for _, out, _ in ended]


DEVICES = """
runs = {key: make(key[1], jax.devices()[:key[0]]) for key in meshes}
config, steps = runs[1, 1]
state = t.state_of(steps.init_state(), 5)
expected = t.bits(jax.device_get(state))
pairs, digests_seen = 0, set()
for old in meshes:
    workdir = root / f"{old}"
    save(workdir, runs[old][0], place(state, runs[old][1]), manager.RunProgress())
    meta = json.loads((workdir / "checkpoints/5/meta/metadata").read_text())
    digests_seen.add(json.dumps(meta["arrays"]))
    for new in meshes:
        config, steps = runs[new]
        restored, _ = restore(workdir, config, steps)
        assert t.bits(jax.device_get(restored)) == expected, (old, new)
        for x, sharding in zip(jax.tree.leaves(restored), jax.tree.leaves(steps.state_shardings)):
            assert x.sharding.is_equivalent_to(sharding, x.ndim)
        pairs += 1
wte = restored.params["wte"]
assert len(wte.sharding.device_set) == 4 and wte.addressable_shards[0].data.size * 4 == wte.size
losses = []
for new in (meshes[0], meshes[-1]):
    config, steps = runs[new]
    first, progress = restore(root / f"{meshes[-1]}", config, steps)
    losses.append(train(config, steps, first, progress, 2)[2])
print(json.dumps([pairs, len(digests_seen), losses]))
"""


FEW = [(1, 1), (2, 1), (4, 4)]  # devices, mesh.fsdp
MANY = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]


@pytest.mark.parametrize("meshes", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=len)
def test_any_number_of_devices_and_back_bit_for_bit(store, tmp_path, meshes):
    code = f"meshes = {meshes}" + DEVICES
    ((pairs, n_digests, losses),) = results([start(code, store, tmp_path, devices=4)])
    assert pairs == len(meshes) ** 2
    assert n_digests == 1  # the same arrays from every mesh
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)  # and training resumes


ALONE = """
config, steps = make(1)
state, progress, _ = train(config, steps, steps.init_state(), manager.RunProgress(), 3)
save(root / "run", config, state, progress)
save(root / "for-a-refusal", config, state, progress)
before = t.bits(jax.device_get(state))
state, progress, losses = train(config, steps, state, progress, 2)
print(json.dumps([before, losses]))
"""

TOGETHER = """
import resource
from jax.experimental import multihost_utils
from configs.errors import UserError
workdir = root / "run"
fsdp = int(os.environ["FSDP"])
config, steps = make(fsdp)
assert jax.process_count() == 2 and jax.device_count() == 4
checkpoints = manager.Checkpoints(workdir, config, store)
state, progress = checkpoints.restore(steps)
assert int(state.step) == 3
seen = t.bits(host_copy(state))
state, progress, losses = train(config, steps, state, progress, 2)
checkpoints.save(state, progress)
assert checkpoints.wait() and checkpoints.latest_step == 5
after = t.bits(host_copy(state))
state, progress, _ = train(config, steps, state, progress, 1)
manager._FIRST_DELAY = 0.0
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
if jax.process_index() == 1:  # its disk is full
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
checkpoints.save(state, progress)
assert checkpoints.wait() and checkpoints.save_due()
text = str(checkpoints._error)
failed = checkpoints.latest_step == 5 and ("process 1" in text) == (jax.process_index() == 0)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
checkpoints.save(state, progress)
assert checkpoints.wait() and checkpoints.latest_step == 6 and not checkpoints.save_due()
def fail(): raise OSError(28, "No space left on device")
if jax.process_index() == 0:
    checkpoints.before_save = fail
checkpoints.save(state, progress)
failed = failed and checkpoints._error is not None
checkpoints._next_try = None
checkpoints.close()
multihost_utils.sync_global_devices("before the damage")
if jax.process_index() == 0:  # in a file that one process alone reads, where it is split
    t.flip_bit(workdir / "checkpoints/6/params/wte/0.0", -9, 0)
multihost_utils.sync_global_devices("after the damage")
restored, _ = restore(workdir, config, steps)
assert t.bits(host_copy(restored)) == after
assert (workdir / "checkpoints/damaged/6").is_dir()
config.seed += 1
other = manager.Checkpoints(root / "for-a-refusal", config, store)
try:
    other.restore(steps)
    refused = False
except UserError:
    refused = True
other.close()
print(json.dumps([losses, seen, after, failed, refused]))
"""


def free_address():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return f"localhost:{s.getsockname()[1]}"


@pytest.mark.slow  # tests/cluster has two processes of the real command
@pytest.mark.parametrize("fsdp", [1, 4])
def test_saved_by_one_process_restored_by_two_and_back(
    store, steps, debug_config, tmp_path, monkeypatch, fsdp
):
    """Two processes of two devices each; with fsdp = 4 neither of them holds an array whole."""
    ((before, expected),) = results([start(ALONE, store, tmp_path)])
    monkeypatch.setenv("FSDP", str(fsdp))
    address = free_address()
    both = results(
        [
            start(TOGETHER, store, tmp_path, devices=2, processes=2, process=i, address=address)
            for i in range(2)
        ]
    )
    checkpoints = Checkpoints(tmp_path / "run", debug_config, store)
    state, progress = checkpoints.restore(steps)
    checkpoints.close()
    assert int(state.step) == 5 and progress.data_state == {"next_row": 5 * 8}
    for losses, seen, saved, failed, refused in both:
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        assert seen == before and saved == bits(jax.device_get(state)) and failed and refused
