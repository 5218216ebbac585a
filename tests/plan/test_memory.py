"""The estimate of memory against that of the same step compiled by XLA for a card."""

import importlib.util
import sys

import jax
import pytest

from configs import modern, rtx4070, rtx4070_110m, rtx4070_best
from configs.errors import UserError
from gptjax.model.config import GPTConfig
from gptjax.plan import compile_step, devices, memory, planner, step_cost

MIB = 2**20

# GiB is arguments + outputs + temporaries - aliased of `compile_step` with jax 0.10.2 and
# jax-cuda12-plugin 0.10.2, for an RTX 4070 with 80 GB, so that XLA had no need to save memory.
# attention, remat, D, B, loss_chunk, A, T, V -> MiB with scan_unroll = 1 and n_layer
COMPILED = {
    ("cudnn", "none", 512, 12, 1024, 40, 1024, 32768): (7529, 3943),
    ("cudnn", "dots", 512, 12, 2048, 40, 1024, 32768): (2831, 3185),
    ("cudnn", "dots", 768, 12, 2048, 40, 1024, 32768): (4702, 5232),
    ("cudnn", "dots", 768, 2, 1024, 1, 1024, 32768): (2124, 2124),
    ("cudnn", "full", 768, 12, 0, 40, 1024, 32768): (4301, 5066),
    ("cudnn", "full", 768, 64, 2048, 40, 1024, 32768): (5022, 5348),
    ("cudnn", "none", 256, 32, 4096, 8, 512, 8192): (4577, 2203),
    ("pallas", "none", 512, 12, 2048, 40, 1024, 32768): (7657, 3937),
    ("xla", "none", 512, 12, 2048, 40, 1024, 32768): (15220, 10842),
    ("xla", "dots", 768, 12, 2048, 40, 1024, 32768): (5843, 6215),
    ("chunked", "dots", 512, 8, 0, 1, 512, 8192): (1328, 1325),
    ("chunked", "full", 768, 24, 2048, 40, 1024, 32768): (3675, 3904),
    ("chunked", "none", 1024, 4, 1024, 8, 2048, 50304): (13148, 7643),
    # The modern preset; and its mlp, n_kv_head, tie_embeddings
    ("cudnn", "dots", 512, 12, 0, 40, 1024, 32768, "swiglu", 0, True): (4869, 4884),
    ("cudnn", "dots", 768, 32, 2048, 8, 1024, 32768, "swiglu", 0, True): (9616, 9747),
    ("cudnn", "dots", 768, 12, 2048, 1, 1024, 32768, "swiglu", 4, False): (4414, 4613),
    ("cudnn", "none", 512, 12, 1024, 40, 1024, 32768, "swiglu", 0, True): (7053, 4232),
    ("cudnn", "full", 768, 12, 0, 40, 1024, 32768, "swiglu", 0, True): (4289, 5051),
    ("cudnn", "full", 768, 64, 2048, 40, 1024, 32768, "swiglu", 0, True): (5475, 5750),
    ("cudnn", "full", 768, 64, 2048, 40, 1024, 32768, "relu2", 0, True): (5306, 5441),
    ("cudnn", "none", 256, 32, 4096, 8, 512, 8192, "swiglu", 2, True): (3943, 2230),
    ("pallas", "dots", 768, 12, 2048, 40, 1024, 32768, "relu2", 0, True): (4638, 5217),
    ("chunked", "full", 768, 24, 2048, 40, 1024, 32768, "swiglu", 4, True): (3785, 3738),
}

# The same with Muon and a moving average of the weights.
COMPILED_WITH_MUON = {
    ("cudnn", "dots", 768, 2, 1024, 1, 1024, 32768): (2304, 2226),
    ("cudnn", "dots", 768, 2, 1024, 40, 1024, 32768): (2647, 2640),
}
# The recipes on 8 H100 with `mesh.fsdp` = 8, otherwise as above.
# recipe, gather, rows a device, A, scan_unroll of all layers -> MiB
SHARDED = {
    (rtx4070, "step", 12, 40, False): 4336,
    (rtx4070, "step", 12, 4, True): 4341,
    (rtx4070, "layer", 12, 2, False): 4054,
    (rtx4070, "layer", 12, 1, True): 4076,
    (rtx4070_110m, "step", 12, 4, False): 5624,
    (rtx4070_110m, "step", 2, 4, False): 1908,
    (rtx4070_110m, "layer", 12, 4, False): 4982,
    (rtx4070_110m, "layer", 2, 4, False): 1235,
    (rtx4070_110m, "layer", 1, 4, False): 866,
    (rtx4070_110m, "layer", 2, 4, True): 1319,
    (rtx4070_best, "step", 8, 4, False): 6647,
}
CASES = [
    (case, unroll, muon)
    for muon, table in enumerate((COMPILED, COMPILED_WITH_MUON))
    for case in table
    for unroll in (0, 1)
]

needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs the extra `target`"
)


def configured(case, unroll=0, muon=0):
    attention, remat, width, batch_size, loss_chunk, micro_steps, block_size, vocab_size = case[:8]
    config = rtx4070.get_config()
    config.model.update(attention=attention, remat=remat, loss_chunk=loss_chunk)
    config.model.update(n_embd=width, n_head=width // 64, block_size=block_size)
    config.model.scan_unroll = config.model.n_layer if unroll else 1
    config.train.update(batch_size=batch_size, gradient_accumulation_steps=micro_steps)
    config.tokenizer.vocab_size = vocab_size
    if muon:
        config.optim.optimizer, config.optim.ema_decay = "muon", 0.999
    if case[8:]:
        modern.apply(config)
        config.model.mlp, config.model.n_kv_head, config.model.tie_embeddings = case[8:]
    return config, GPTConfig.from_config(config, vocab_size)


def recorded_mib(case, unroll, muon):
    return (COMPILED_WITH_MUON if muon else COMPILED)[case][unroll]


@pytest.mark.parametrize(("case", "unroll", "muon"), CASES, ids=str)
def test_estimate_is_within_its_tolerance(case, unroll, muon):
    config, model_config = configured(case, unroll, muon)
    cost = step_cost.analyze(config, model_config)
    estimated = memory.estimate(config, model_config, cost, 1).total / MIB
    compiled = recorded_mib(case, unroll, muon)
    assert estimated == pytest.approx(compiled, rel=memory.TOLERANCE)
    assert estimated > 0.94 * compiled  # an underestimate is worse


def _name(case):
    recipe, *others = case
    return "-".join([recipe.__name__, *map(str, others)])


def sharded(recipe, gather, rows, micro_steps, unroll):
    config = recipe.get_config()
    config.mesh.fsdp, config.mesh.gather = 8, gather
    config.train.update(batch_size=8 * rows, gradient_accumulation_steps=micro_steps)
    config.model.scan_unroll = config.model.n_layer if unroll else 1
    config = planner.resolve_auto(config, devices.find("h100", 8))
    return config, GPTConfig.from_config(config, config.tokenizer.vocab_size)


@pytest.mark.parametrize("case", SHARDED, ids=_name)
def test_a_device_that_shares_the_parameters_needs_its_part(case):
    config, model_config = sharded(*case)
    cost = step_cost.analyze(config, model_config)
    estimated = memory.estimate(config, model_config, cost, 8).total / MIB
    assert estimated == pytest.approx(SHARDED[case], rel=memory.TOLERANCE)
    assert estimated > 0.94 * SHARDED[case]


@pytest.mark.slow
@needs_plugin
@pytest.mark.parametrize("case", list(SHARDED)[::3], ids=_name)
def test_recorded_figures_of_several_devices_are_those_of_the_compiler(case):
    step = compile_step.compile_step(*sharded(*case), devices.find("h100", 8))
    jax.clear_caches()
    assert step.n_rematerialized == 0
    assert step.total / MIB == pytest.approx(SHARDED[case], rel=0.01)


@pytest.mark.slow
@needs_plugin
@pytest.mark.parametrize(("case", "unroll", "muon"), CASES[::3], ids=str)
def test_recorded_figures_are_those_of_the_compiler(monkeypatch, case, unroll, muon):
    config, model_config = configured(case, unroll, muon)
    card = compile_step.CARDS["rtx4070"]._replace(memory_mib=80_000)
    monkeypatch.setitem(compile_step.CARDS, "rtx4070", card)
    step = compile_step.compile_step(config, model_config, devices.find("rtx4070"))
    jax.clear_caches()
    assert step.n_rematerialized == 0
    assert step.total / MIB == pytest.approx(recorded_mib(case, unroll, muon), rel=0.01)


@pytest.mark.slow
@needs_plugin
def test_instructions_that_xla_rematerializes_are_counted():
    case = ("cudnn", "none", 768, 12, 2048, 40, 1024, 32768)
    config, model_config = configured(case)
    step = compile_step.compile_step(config, model_config, devices.find("rtx4070"))
    assert step.n_rematerialized > 0


def test_a_missing_compiler_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_cuda12_plugin", None)
    config, model_config = configured(list(COMPILED)[0])
    with pytest.raises(UserError, match=r"gptjax\[target\]"):
        compile_step.compile_step(config, model_config, devices.find("rtx4070"))


@pytest.mark.parametrize("limit", [0, 1, 3, 4, 7, 1000])
@pytest.mark.parametrize("step", [1, 2, 6])
def test_largest_batch_equals_a_linear_search(limit, step):
    expected = max((b for b in range(0, limit + 1, step)), default=0)
    assert memory.largest_batch(lambda b: b <= limit, step) == expected


def test_batch_sizes_keep_the_chunks_of_the_loss_whole():
    config = rtx4070.get_config()
    config.model.loss_chunk = 3 * config.model.block_size
    assert memory.batch_step(config.model, n_devices=1) == 3
    assert memory.batch_step(config.model, n_devices=2) == 6
    config.model.loss_chunk = 0
    assert memory.batch_step(config.model, n_devices=2) == 2
