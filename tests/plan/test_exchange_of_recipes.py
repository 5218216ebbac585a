"""The recipes' steps as compiled for many H100: they exchange the least, whatever they compute."""

import functools
import importlib.util

import jax
import pytest

from configs import rtx4070, rtx4070_best
from gptjax.model import GPTConfig
from gptjax.plan import compile_step, devices, exchange, planner
from gptjax.plan.collectives import sent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs the extra `target`"
    ),
]
RECIPES = {"rtx4070": rtx4070, "best": rtx4070_best}


@functools.cache
def exchanged(recipe, n_devices, fsdp, gather, micro_steps, attention="auto", unroll=1):
    """(what the compiled step exchanges, the least that it can)."""
    config = RECIPES[recipe].get_config()
    config.mesh.fsdp, config.mesh.gather = fsdp, gather
    config.train.batch_size *= n_devices  # the rows of a device stay
    config.train.gradient_accumulation_steps = micro_steps
    config.model.attention, config.model.scan_unroll = attention, unroll
    device = devices.find("h100", n_devices)
    config = planner.resolve_auto(config, device)
    model_config = GPTConfig.from_config(config, config.tokenizer.vocab_size)
    compiled = compile_step.compile_step(config, model_config, device)
    jax.clear_caches()
    return compiled.collectives, exchange.minimum(config, model_config, n_devices)


def assert_least(compiled, least):
    """Within 2 %: losses, counts and norms are exchanged, too, but nothing as large as activations.

    Sums of gradients are of float32.
    """
    assert sent(least) <= sent(compiled) <= 1.02 * sent(least), compiled
    sums = [c for c in compiled if c.kind in ("all-reduce", "reduce-scatter")]
    assert {c.dtype for c in sums} <= {"f32", "s32"}, sums


@pytest.mark.parametrize("micro_steps", [1, 40])
@pytest.mark.parametrize("fsdp", [1, 8])
def test_gradients_are_summed_once_a_step(fsdp, micro_steps):
    compiled, least = exchanged("rtx4070", 8, fsdp, "step", micro_steps, unroll=12)
    assert_least(compiled, least)
    assert all(c.runs == 1 for c in compiled)
    assert sent(compiled) / (4 * 55_063_040) == pytest.approx(2 * 7 / 8, rel=0.02)


@pytest.mark.parametrize("micro_steps", [1, 40])
def test_blocks_are_gathered_twice_and_scattered_once_a_micro_step(micro_steps):
    compiled, least = exchanged("rtx4070", 8, 8, "layer", micro_steps)
    assert_least(compiled, least)
    blocks = 12 * 12 * 512**2
    gathered = sum(c.wire_bytes for c in compiled if (c.kind, c.dtype) == ("all-gather", "bf16"))
    assert gathered == pytest.approx(2 * micro_steps * 2 * blocks * 7 / 8)
    scattered = sum(c.wire_bytes for c in compiled if c.kind == "reduce-scatter")
    others = (32768 + 1024) * 512
    assert scattered == pytest.approx(4 * (micro_steps * blocks + others) * 7 / 8)


@pytest.mark.parametrize("attention", ["xla", "chunked", "pallas"])  # auto is cudnn
@pytest.mark.parametrize("fsdp", [1, 8])
def test_every_attention_computes_the_rows_of_its_device(attention, fsdp):
    assert_least(*exchanged("rtx4070", 8, fsdp, "step", 2, attention))


@pytest.mark.parametrize(("fsdp", "gather"), [(1, "step"), (8, "step"), (8, "layer")])
def test_muon_exchanges_no_operands_of_its_matmuls(fsdp, gather):
    assert_least(*exchanged("best", 8, fsdp, gather, 32))


def test_several_hosts_sum_shards():
    compiled, least = exchanged("rtx4070", 64, 8, "step", 2)
    assert_least(compiled, least)
    assert sent(compiled) / (4 * 55_063_040) == pytest.approx(1.969, abs=0.01)
    between_hosts = [c for c in compiled if max(c.group) >= 8]
    assert sum(c.wire_bytes for c in between_hosts) < 0.25 * 4 * 55_063_040


def test_one_device_exchanges_nothing():
    compiled, least = exchanged("rtx4070", 1, 1, "step", 2)
    assert not compiled and not least
