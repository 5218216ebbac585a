"""The cost of a step against closed forms and XLA's own count."""

import ast
import copy
import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import rtx4070
from gptjax.model.config import GPTConfig
from gptjax.model.flops import count_params, flops_per_token
from gptjax.plan import step_cost
from gptjax.plan.step_cost import Operation, StepCost
from gptjax.step.sharding import make_mesh


def small(config=None, **settings):
    config = copy.deepcopy(config or rtx4070.get_config())
    config.model.update(n_layer=3, n_embd=256, n_head=4, block_size=256, loss_chunk=0)
    config.model.update(remat="none", attention="xla", compute_dtype="float32")
    config.model.update(settings)
    config.tokenizer.vocab_size = 2048
    config.train.batch_size, config.train.gradient_accumulation_steps = 2, 3
    return config, GPTConfig.from_config(config, 2048)


def tokens_of(config):
    train = config.train
    return train.batch_size * train.gradient_accumulation_steps * config.model.block_size


MODERN = {"norm": "rmsnorm", "position": "rope", "qk_norm": True, "mlp": "swiglu"}


@pytest.mark.parametrize(
    "settings", [{}, MODERN, {**MODERN, "n_kv_head": 2, "tie_embeddings": False}, {"mlp": "relu2"}]
)
def test_flops_without_recomputation_are_the_models(settings):
    config, model_config = small(**settings)
    expected = tokens_of(config) * flops_per_token(model_config)
    assert step_cost.analyze(config, model_config).flops == expected


@pytest.mark.parametrize("settings", [{}, {**MODERN, "n_kv_head": 2}])
def test_flops_per_token_is_what_xla_counts(settings):
    """Unrolled, for XLA counts the body of a loop once; it counts elementwise work, too."""
    config, model_config = small(scan_unroll=3, **settings)
    config.train.gradient_accumulation_steps = 1
    mesh = make_mesh(1, jax.devices()[:1])
    steps, state = step_cost.step_functions(config, model_config, mesh)
    traced = step_cost.trace_step(config, steps, state)
    counted = traced.lower().cost_analysis()["flops"] / tokens_of(config)
    elementwise = counted / flops_per_token(model_config) - 1
    assert 0 < elementwise < 0.06


def test_muon_orthogonalises_once_a_step_and_keeps_one_momentum():
    config, model_config = small()
    n_params, _ = count_params(model_config)
    plain = step_cost.analyze(config, model_config)
    config.optim.optimizer, config.optim.ema_decay = "muon", 0.999
    cost = step_cost.analyze(config, model_config)

    def orthogonalising(d_in, d_out):  # five times: Gram matrix, its square, their product with X
        a, b = sorted((d_in, d_out))
        return 5 * (2 * a * a * b + 2 * a**3 + 2 * a * a * b)

    d, matrices = model_config.n_embd, model_config.n_layer * 12 * model_config.n_embd**2
    expected = model_config.n_layer * (4 * orthogonalising(d, d) + 2 * orthogonalising(d, 4 * d))
    assert cost.flops - plain.flops == expected
    # Parameters and two moments, accumulated gradients; a moment less for matrices; the average.
    assert 0 <= plain.state_bytes - 4 * 4 * n_params < 1000
    assert 0 <= cost.state_bytes - 4 * (5 * n_params - matrices) < 1000
    # All of the state is read and written. 3 micro-steps read gradients, read and write their mean.
    accumulating = 3 * 3 * 4 * n_params
    for one in (plain, cost):
        assert one.update_bytes == 2 * one.state_bytes + accumulating
    config.train.gradient_accumulation_steps = 1
    once = step_cost.analyze(config, model_config)
    assert once.update_bytes == 2 * once.state_bytes + 4 * n_params


def test_recomputing_blocks_adds_a_forward_pass_of_them():
    config, model_config = small()
    plain = step_cost.analyze(config, model_config).flops
    again = step_cost.analyze(config, dataclasses.replace(model_config, remat="full")).flops
    head = 6 * model_config.vocab_size * model_config.n_embd * tokens_of(config)
    # The last matmul of a block is not recomputed: the backward pass does not read its result.
    unread = 2 * 4 * model_config.n_embd**2 * model_config.n_layer * tokens_of(config)
    assert again - plain == (plain - head) / 3 - unread


@pytest.mark.parametrize("attention", ["cudnn", "pallas"])
def test_dots_computes_no_projection_and_no_attention_again(attention):
    config, model_config = small(attention=attention, compute_dtype="bfloat16")
    plain = step_cost.analyze(config, model_config).flops
    again = step_cost.analyze(config, dataclasses.replace(model_config, remat="dots")).flops
    assert again == plain


@pytest.mark.parametrize("attention", ["cudnn", "pallas"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_flash_attention_does_seven_matmuls_of_which_causality_hides_half(attention, kv_heads):
    config, model_config = small(attention=attention, compute_dtype="bfloat16", n_kv_head=kv_heads)
    attention_flops = (
        (7 / 2) * 2 * model_config.n_layer * model_config.n_embd * model_config.block_size
    )
    linear = (
        flops_per_token(model_config)
        - 12 * model_config.n_layer * model_config.n_embd * model_config.block_size
    )
    expected = tokens_of(config) * (linear + attention_flops)
    assert step_cost.analyze(config, model_config).flops == expected


def test_activations_saved_for_the_backward_pass():
    """With full recomputation a layer saves only its input."""
    config, model_config = small(remat="full", compute_dtype="bfloat16")
    rows = config.train.batch_size
    expected = model_config.n_layer * rows * model_config.block_size * model_config.n_embd * 2
    assert step_cost.analyze(config, model_config).kept_bytes == expected


def test_unrolled_layers_keep_what_matmuls_read():
    config, model_config = small(compute_dtype="bfloat16", remat="dots", scan_unroll=3)
    dots = step_cost.analyze(config, model_config)
    assert dots == step_cost.analyze(config, dataclasses.replace(model_config, scan_unroll=1))
    none = step_cost.analyze(config, dataclasses.replace(model_config, remat="none"))
    assert none.kept_bytes == 1.75 * dots.kept_bytes


def test_roofline_takes_the_nearer_roof_of_each_operation():
    slow_math = Operation("a", count=2, flops=100, bytes=10, arithmetic="bfloat16")
    slow_memory = Operation("b", count=3, flops=10, bytes=100, arithmetic="bfloat16")
    float32 = Operation("c", count=1, flops=30, bytes=5, arithmetic="float32")
    cost = StepCost(
        (float32, slow_math, slow_memory),
        update_bytes=50,
        kept_bytes=0,
        state_bytes=0,
        teacher=None,
    )
    assert (cost.flops, cost.bytes) == (260, 375)
    assert list(cost.flops_by_arithmetic.items()) == [("bfloat16", 230), ("float32", 30)]
    peaks = {"bfloat16": 10, "float32": 2}
    assert cost.seconds(peaks, bandwidth=5) == 50 / 5 + 2 * 10 + 3 * 20 + 15


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_bfloat16_step_multiplies_in_bfloat16(optimizer):
    config, model_config = small(compute_dtype="bfloat16", attention="cudnn", **MODERN)
    config.optim.optimizer = optimizer
    assert set(step_cost.analyze(config, model_config).flops_by_arithmetic) == {"bfloat16"}


def test_a_float32_step_multiplies_in_tf32_and_muon_in_float32():
    config, model_config = small()
    plain = step_cost.analyze(config, model_config)
    assert set(plain.flops_by_arithmetic) == {"tf32"}
    config.optim.optimizer = "muon"
    flops = step_cost.analyze(config, model_config).flops_by_arithmetic
    assert flops["tf32"] == plain.flops and flops["float32"] > 0


@pytest.mark.parametrize(
    ("dtypes", "precision", "arithmetic"),
    [
        (("bfloat16", "bfloat16"), None, "bfloat16"),
        (("bfloat16", "float32"), None, "tf32"),
        (("float32", "bfloat16"), None, "tf32"),
        (("float32", "float32"), "default", "tf32"),
        (("float32", "float32"), "highest", "float32"),
        (("float32", "float32"), "BF16_BF16_F32", "bfloat16"),
        (("float32", "float32"), "F32_F32_F32", "float32"),
    ],
)
def test_arithmetic_of_a_matmul(dtypes, precision, arithmetic):
    shapes = [jax.ShapeDtypeStruct((8, 8), dtype) for dtype in dtypes]
    jaxpr = jax.make_jaxpr(lambda a, b: jax.lax.dot(a, b, precision=precision))(*shapes).jaxpr
    (operation,) = step_cost._operations(jaxpr, 1)
    assert operation.arithmetic == arithmetic


def test_bytes_of_a_matmul_are_operands_and_result():
    def matmul(a, b):
        return jax.lax.scan(lambda c, _: (c @ b, None), a, length=4)[0]

    shapes = jax.ShapeDtypeStruct((8, 16), np.float32), jax.ShapeDtypeStruct((16, 16), np.float32)
    (operation,) = step_cost._operations(jax.make_jaxpr(matmul)(*shapes).jaxpr, 1)
    n_bytes = 4 * (8 * 16 + 16 * 16 + 8 * 16)
    assert operation == Operation("dot_general", 4, 2 * 8 * 16 * 16, n_bytes, "tf32")


def test_importing_the_plan_imports_no_private_module_of_jax():
    for path in Path(step_cost.__file__).parent.glob("*.py"):
        imports = [x for x in ast.parse(path.read_text()).body if isinstance(x, ast.ImportFrom)]
        assert not any((x.module or "").startswith("jax._src") for x in imports), path
