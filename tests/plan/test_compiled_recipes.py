"""The recipes' steps as compiled for an RTX 4070: dtypes, kernels, memory and traffic."""

import importlib.util
import re
from collections import Counter
from typing import NamedTuple

import jax
import pytest

from configs import rtx4070, rtx4070_110m, rtx4070_best
from gptjax.model.config import GPTConfig
from gptjax.plan import compile_step, devices, planner, step_cost
from gptjax.plan.hlo_traffic import Transfer
from gptjax.plan.planner import Plan, resolve_auto
from gptjax.plan.run_data import Data

GIB = 2**30
DATA = Data(None, None, "not read")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs the extra `target`"
    ),
]


class Recipe(NamedTuple):
    plan: Plan
    text: str  # the optimized program of the train step

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        return self.plan.compiled.transfers


RECIPES = {"rtx4070": rtx4070, "110m": rtx4070_110m, "best": rtx4070_best}


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request):
    texts = []
    with pytest.MonkeyPatch.context() as patch:
        parse = compile_step.hlo.parse
        patch.setattr(compile_step.hlo, "parse", lambda text: texts.append(text) or parse(text))
        # One compilation: the search for the largest batch is not of interest here.
        patch.setattr(planner, "_largest_compiled", lambda *_: 0)
        config = RECIPES[request.param].get_config()
        plan = planner.make_plan(config, devices.find("rtx4070"), DATA, compile_step=True)
    jax.clear_caches()
    return Recipe(plan, texts[0])


def dots(text):
    """Yields (types of the operands, the line) of every matmul of a program."""
    types = {}
    for line in text.splitlines():
        if re.match(r"(ENTRY )?%?[\w.-]+ \(.*\{$", line):
            types = {}  # names are those of a computation
        elif match := re.match(
            r"\s+(?:ROOT )?%?([\w.-]+) = (\([^=]*?\)|\S+) ([\w-]+)\((.*)$", line
        ):
            name, types[name], opcode, rest = match[1], match[2], match[3], match[4]
            if opcode in ("dot", "convolution"):
                operands = re.findall(r"%([\w.-]+)", rest.partition(")")[0])
                yield [types[operand].partition("[")[0] for operand in operands], line


def test_no_matmul_has_float32_operands(recipe):
    found = list(dots(recipe.text))
    # XLA may merge those of queries, keys and values: 4 layers, forward and twice backward.
    assert len(found) > 4 * 3 * recipe.plan.model_config.n_layer
    for types, line in found:
        # Muon's, once a step, are of float32 matrices that are rounded on the way.
        assert set(types) == {"bf16"} or "algorithm=dot_bf16_bf16_f32" in line, line
    assert set(recipe.plan.cost.flops_by_arithmetic) == {"bfloat16"}
    # Anything else that multiplies matrices would be a library call.
    calls = set(re.findall(r'custom_call_target="([^"]*)"', recipe.text))
    assert calls == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}


def test_attention_runs_once_forward_and_once_backward(recipe):
    runs = Counter()
    for transfer in recipe.transfers:
        match = re.search(r"dot_product_attention_(fwd|bwd)$", transfer.source)
        if match and transfer.name.startswith("dot_product_attention"):
            runs[match[1]] += transfer.runs
    micro_steps = recipe.plan.config.train.gradient_accumulation_steps
    assert runs == dict.fromkeys(("fwd", "bwd"), micro_steps * recipe.plan.model_config.n_layer)


def test_memory_and_traffic_are_within_what_is_documented(recipe, request):
    gib, gigabytes = {"rtx4070": (4.6, 1450), "110m": (6.5, 2000), "best": (8.0, 2700)}[
        request.node.callspec.params["recipe"]
    ]
    compiled = recipe.plan.compiled
    assert compiled.total <= gib * GIB
    assert compiled.bytes_moved <= gigabytes * 1e9
    assert compiled.n_rematerialized == 0
    assert 0 < compiled.evaluation < compiled.total
    # The bound is arithmetic, also with nothing saved by a cache.
    assert compiled.bytes_moved / recipe.plan.device.bandwidth <= recipe.plan.step_seconds[0]


@pytest.mark.parametrize("width", [64, 128])
def test_pallas_attention_compiles(width):
    config = resolve_auto(rtx4070.get_config(), devices.find("rtx4070"))
    config.model.update(attention="pallas", n_layer=1, n_head=512 // width, scan_unroll=1)
    model_config = GPTConfig.from_config(config, config.tokenizer.vocab_size)
    step = compile_step.compile_step(config, model_config, devices.find("rtx4070"))
    assert any("pallas" in t.source or "mha" in t.source for t in step.transfers)


def test_several_cards_exchange_gradients():
    config = rtx4070.get_config()
    config.model.n_layer = config.model.scan_unroll = 1
    config = resolve_auto(config, devices.find("rtx4070"))
    model_config = GPTConfig.from_config(config, config.tokenizer.vocab_size)
    one, two = (
        compile_step.compile_step(config, model_config, devices.find("rtx4070", n)) for n in (1, 2)
    )
    assert any("all-reduce" in t.name for t in two.transfers)
    assert not any("all-reduce" in t.name for t in one.transfers)
    assert two.temporaries < 0.6 * one.temporaries


def scatters(config):
    """The sums into rows of a one-layer step, as text."""
    config = resolve_auto(config, devices.find("rtx4070"))
    config.model.n_layer = config.model.scan_unroll = 1
    model_config = GPTConfig.from_config(config, config.tokenizer.vocab_size)
    traced = step_cost.trace_step(
        config,
        *step_cost.step_functions(
            config, model_config, compile_step._card_mesh(config, devices.find("rtx4070"))
        ),
    )
    text = traced.lower().compile().as_text()
    return [line for line in text.splitlines() if re.search(r" scatter\(", line)]


def test_deterministic_sums_no_rows_by_atomic_additions():
    """The gradient of the embeddings; cuDNN's kernels are chosen on the card only."""
    config = rtx4070.get_config()
    assert not any("unique_indices=true" in line for line in scatters(config))
    config.deterministic = True
    lines = scatters(config)
    assert lines and all("unique_indices=true" in line for line in lines)
