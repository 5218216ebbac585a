"""Several devices compute what one does, and exchange no more than they must."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import debug
from gptjax.common.workdir import save_config

ROOT = Path(__file__).parents[2]

COMMON = """
import json, os, re, sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from configs import debug
from gptjax.model import init
from gptjax.model.config import GPTConfig
from gptjax.step.sharding import make_mesh, place_batch
from gptjax.step.train_step import StepFunctions

def make(n_devices, fsdp, gather, **changes):
    config = debug.get_config()
    config.train.batch_size, config.mesh.fsdp, config.mesh.gather = 8, fsdp, gather
    config.model.dropout = 0.1
    config.optim.eps = 1e-3  # else Adam amplifies the rounding of gradients near zero to full steps
    for key, value in changes.items():
        group, name = key.split("__")
        config[group][name] = value
    model_config = GPTConfig.from_config(config, 512)
    token_bytes = np.arange(512, dtype=np.int32) % 5
    mesh = make_mesh(fsdp, jax.devices()[:n_devices])
    return StepFunctions(config, model_config, token_bytes, mesh)

def batches(steps, n=3):
    rng = np.random.default_rng(0)
    for _ in range(n):
        tokens = rng.integers(0, 512, (2, 8, 33), dtype=np.int32)
        mask = rng.random((2, 8, 32)) < 0.9
        batch = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:], "loss_mask": mask}
        yield place_batch(steps.batch_sharding, batch)
"""

AGREE = """
results = {}
for key in map(tuple, json.loads(sys.argv[2])):
    steps = make(*key, **json.loads(sys.argv[1]))
    state = steps.init_state()
    teacher = [init(steps.teacher, jax.random.key(1))] if steps.teacher else []
    for batch in batches(steps):
        state, metrics = steps.train_step(state, batch, None, *teacher)
    sums = steps.eval_step(state.params, {name: x[:1] for name, x in batch.items()})
    arrays = jax.tree.leaves(state)
    held = sum(x.addressable_shards[0].data.size for x in arrays)
    whole = sum(x.size for x in arrays)
    values = [float(np.sum(x)) for x in jax.tree.leaves((metrics, sums))]
    norms = [float(np.linalg.norm(np.asarray(x, np.float64))) for x in arrays]
    counts = [int(metrics["n_targets"]), int(metrics["n_bytes"]), int(sums["n_targets"])]
    results[str(key)] = [values, norms, counts, held * key[1] / whole]
print(json.dumps(results))
"""


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", COMMON + code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


STEP, LAYER = (8, 4, "step"), (4, 2, "layer")  # devices, mesh.fsdp, mesh.gather
RECIPES = [
    ({"optim__ema_decay": 0.9}, [LAYER]),
    *(
        pytest.param(changes, [STEP, LAYER], marks=pytest.mark.slow)
        for changes in (
            {"optim__ema_decay": 0.9},
            {"optim__optimizer": "muon", "model__remat": "dots"},
            {"model__remat": "full", "model__tie_embeddings": False},
            {"train__teacher": "teacher"},
        )
    ),
]


@pytest.mark.parametrize(("changes", "meshes"), RECIPES)
def test_several_devices_compute_what_one_does(changes, meshes, tmp_path):
    """Losses, counts and the state after three steps; dropout goes by rows, whoever has them."""
    if "train__teacher" in changes:
        changes = {"train__teacher": str(tmp_path)}
        save_config(debug.get_config(), tmp_path)
    results = run(AGREE, json.dumps(changes), json.dumps([(1, 1, "step"), *meshes]))
    values, norms, counts, _ = results.pop("(1, 1, 'step')")
    assert len(results) == len(meshes)
    for other_values, other_norms, other_counts, share in results.values():
        assert other_counts == counts
        np.testing.assert_allclose(other_values, values, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other_norms, norms, rtol=1e-4, atol=1e-6)
        assert share < 1.1  # each device holds its share of the state


COMPILED = """
results = {}
for key in [(1, 1, "step"), (8, 4, "step"), (8, 4, "layer")]:
    for n_micro in (2, 6):
        changes = {"train__gradient_accumulation_steps": n_micro}
        steps = make(*key, model__compute_dtype="bfloat16", **changes)
        batch = {name: jax.ShapeDtypeStruct((n_micro, *x.shape[1:]), x.dtype)
                 for name, x in next(batches(steps)).items()}
        text = steps.train_step.lower(steps.state_shapes, batch).as_text()
        kinds = "all_reduce|all_gather|reduce_scatter|all_to_all|collective_permute"
        pattern = rf"stablehlo.({kinds})\\b.*?-> \\(?tensor<(?:\\d+x)*([a-z]\\w*)>"
        results[str((*key, n_micro))] = re.findall(pattern, text, re.DOTALL)
print(json.dumps(results))
"""


def test_what_devices_exchange_does_not_grow_with_the_micro_steps():
    """No collective on one device; on several, gradients are summed in float32."""
    results = run(COMPILED)
    for n_micro in (2, 6):
        assert results[f"(1, 1, 'step', {n_micro})"] == []
    step = results["(8, 4, 'step', 2)"]
    assert {kind for kind, _ in step} == {"all_gather", "reduce_scatter", "all_reduce"}
    assert {dtype for kind, dtype in step if kind != "all_gather"} <= {"f32", "i32", "ui32"}
    assert {dtype for kind, dtype in step if kind == "all_gather"} == {"f32"}
    layer = results["(8, 4, 'layer', 2)"]
    assert "bf16" in {dtype for kind, dtype in layer if kind == "all_gather"}
    assert "bf16" not in {dtype for kind, dtype in layer if kind != "all_gather"}
    for gather in ("step", "layer"):
        few, many = (results[f"(8, 4, '{gather}', {n})"] for n in (2, 6))
        assert len(few) == len(many)
