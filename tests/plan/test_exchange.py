"""The least that devices exchange, against closed forms and compiled steps, and the prediction."""

import dataclasses
import json
import subprocess
import sys

import pytest

from configs import rtx4070
from configs.errors import UserError
from gptjax.model import GPTConfig, count_params
from gptjax.plan import devices, exchange, planner, render
from gptjax.plan.cards import Link
from gptjax.plan.collectives import Collective, sent
from gptjax.plan.compile_step import CompiledStep
from gptjax.plan.run_data import Data

DATA = Data(None, None, "not read")


def least(n_devices, fsdp=1, gather="step", micro_steps=40):
    config = rtx4070.get_config()
    config.mesh.fsdp, config.mesh.gather = fsdp, gather
    config.train.gradient_accumulation_steps = micro_steps
    model_config = GPTConfig.from_config(config, config.tokenizer.vocab_size)
    return exchange.minimum(config, model_config, n_devices), count_params(model_config)


def test_copies_exchange_their_gradients_once():
    (one,), (n_params, _) = least(8)
    assert one == Collective("all-reduce", "f32", 4 * n_params, range(8), 1, "gradients")
    assert one.wire_bytes == 2 * 7 / 8 * 4 * n_params
    assert least(1)[0] == []


VECTORS = 12 * 2 * 512 + 512  # scales of the norms: copied, not split


@pytest.mark.parametrize("n_copies", [1, 8])
def test_split_parameters_are_gathered_and_their_gradients_scattered_once(n_copies):
    exchanged, (n_params, _) = least(8 * n_copies, fsdp=8)
    split = 4 * (n_params - VECTORS)
    n = 8 * n_copies
    assert sent(exchanged) == pytest.approx(
        2 * 7 / 8 * split  # within 8 devices, and their shards with the copies
        + 2 * (n_copies - 1) / n_copies * split / 8
        + 2 * (n - 1) / n * 4 * VECTORS
    )
    assert {c.dtype for c in exchanged} == {"f32"} and {c.runs for c in exchanged} == {1}
    groups = {(c.kind, tuple(c.group)) for c in exchanged if c.bytes > 10**6}
    assert ("all-gather", tuple(range(8))) in groups
    assert (("all-reduce", tuple(range(0, 64, 8))) in groups) == (n_copies == 8)


def test_blocks_gathered_by_layer_are_exchanged_in_every_micro_step():
    exchanged, _ = least(8, fsdp=8, gather="layer", micro_steps=5)
    blocks = 12 * 12 * 512**2
    others = (32768 + 1024) * 512
    by_micro_step = 7 / 8 * (2 * 2 + 4) * blocks  # forward, backward, gradient
    expected = 5 * by_micro_step + 2 * 7 / 8 * 4 * others + 2 * 7 / 8 * 4 * VECTORS
    assert sent(exchanged) == pytest.approx(expected)
    by_dtype = {c.dtype: c.runs for c in exchanged if c.kind == "all-gather"}
    assert by_dtype == {"f32": 1, "bf16": 2 * 5}


COMPILED = """
import json, jax
jax.config.update("jax_num_cpu_devices", 4)
from configs import debug
from gptjax.model import GPTConfig
from gptjax.plan import exchange, hlo, step_cost
from gptjax.plan.collectives import collectives, sent
from gptjax.step import make_mesh

config = debug.get_config()
config.mesh.fsdp, config.mesh.gather = 2, "layer"
config.train.batch_size, config.train.gradient_accumulation_steps = 4, 3
model_config = GPTConfig.from_config(config, 512)
steps, state = step_cost.step_functions(config, model_config, make_mesh(2))
text = step_cost.trace_step(config, steps, state).lower().compile().as_text()
compiled = collectives(hlo.parse(text))
least = exchange.minimum(config, model_config, 4)
print(json.dumps([sent(compiled), sent(least), sorted({c.dtype for c in compiled})]))
"""


def test_a_compiled_step_exchanges_the_least():
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    compiled, by_arithmetic, dtypes = json.loads(done.stdout)
    assert by_arithmetic <= compiled <= 1.02 * by_arithmetic
    assert dtypes == ["f32", "s32"]


def test_a_ring_runs_at_its_slowest_link():
    device = devices.find("h100", 16, 2)
    compute = 1e15 / (0.4 * device.peak_flops * 16)
    network = Link("some network", 1e9)

    def predicted(group, network):
        one = Collective("all-gather", "f32", 10**6, group, 3, "")
        efficiency = exchange.efficiency([one], 1e15, device, network)
        return compute / efficiency - compute

    # Alone in its host, a device has an eighth of the network; all of a host share one ring.
    assert predicted([0, 1, 2], network) == pytest.approx(3 * 2e6 / (0.7 * 450e9), rel=1e-6)
    assert predicted([0, 8], network) == pytest.approx(3 * 1e6 / (0.7 * 1e9 / 8), rel=1e-6)
    assert predicted(range(16), network) == pytest.approx(3 * 15e6 / (0.7 * 1e9), rel=1e-6)
    assert predicted(range(16), None) == pytest.approx(3 * 15e6 / (0.7 * 450e9), rel=1e-6)
    assert exchange.efficiency([], 1e15, device, network) == 1
    unknown = dataclasses.replace(device, link=None)
    assert exchange.efficiency([], 1e15, unknown, network) is None


@pytest.fixture(scope="module")
def plan():
    config = rtx4070.get_config()
    config.train.batch_size = 12 * 64
    return planner.make_plan(config, devices.find("h100", 64), DATA)


def test_a_plan_for_several_hosts_lists_exchange_and_prediction(plan):
    lines = render.describe(plan, full=True).splitlines()
    assert lines[0].startswith("Plan for 64 x NVIDIA H100 80GB HBM3 in 8 hosts")
    (line,) = [line for line in lines if line.startswith("  exchange")]
    assert "at least 433.6 MB a step, 1.969 times the parameters' 220.3 MB, by arithmetic" in line
    assert line.endswith("433.6 MB all-reduce f32 over 64")
    (line,) = [line for line in lines if line.startswith("  scaling")]
    assert "predicted" in line and "with no overlap" in line
    for network in ("NVLink between all", "InfiniBand between hosts", "Ethernet between hosts"):
        assert network in line
    assert "exchange" not in render.describe(plan, full=False)


def test_a_compiled_plan_lists_what_its_step_exchanges(plan):
    twice = tuple(c._replace(runs=2) for c in plan.exchange)
    compiled = dataclasses.replace(plan, compiled=CompiledStep(0, 0, 0, 0, 0, (), twice, 0, 1.0))
    text = render.describe(compiled, full=True)
    assert "as compiled 867.2 MB, 2.000 times the least: 867.2 MB all-reduce f32 over 64" in text
    for network in (None, *exchange.NETWORKS):
        assert compiled.efficiency(network) < plan.efficiency(network) < 1


def test_hosts_have_equal_numbers_of_devices():
    assert [devices.find("h100", n).hosts for n in (1, 8, 16, 64)] == [1, 1, 2, 8]
    assert devices.find("h100", 8, 4).hosts == 4
    for count, hosts in ((9, None), (8, 3), (8, 0)):
        with pytest.raises(UserError, match="--hosts"):
            devices.find("h100", count, hosts)
    with pytest.raises(UserError, match="--hosts=2: this machine has"):
        devices.find("local", None, 2)
