"""Arithmetic, memory traffic and saved activations of a train step, counted in its jaxpr."""

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.lax import DotAlgorithmPreset, Precision
from jax.sharding import Mesh
from jax.stages import Traced
from ml_collections import ConfigDict

from gptjax.model import GPTConfig, init
from gptjax.step import StepFunctions, make_mesh

_DEFAULT_PRECISIONS = (None, (Precision.DEFAULT, Precision.DEFAULT))
_CUDNN_VERSION = 91000  # assumed without a GPU; has all that attention uses
# With remat "none", unrolled layers keep this many times what `dots` saves: inputs of matmuls, and
# no float32. From XLA's buffer assignments, see tests/plan/test_memory.py.
_KEPT_TO_DOTS = 1.75
_KERNELS = ("pallas_call", "dot_product_attention_fwd_wrapper", "dot_product_attention_bwd_wrapper")


@dataclasses.dataclass(frozen=True)
class Operation:
    """A matmul or an attention kernel of the step."""

    name: str
    count: int  # runs per step
    flops: int  # of one run
    bytes: int  # of one run: operands read once, results written once
    arithmetic: str  # of its multiplications: bfloat16, tf32 or float32 (see `cards.peaks`)


@dataclasses.dataclass(frozen=True)
class StepCost:
    """One optimizer step on one device; elementwise work counts as fused into its neighbours."""

    operations: tuple[Operation, ...]
    update_bytes: int  # traffic of gradient accumulation and of the update of the state
    kept_bytes: int  # activations that the layers of a micro-step save for its backward pass
    state_bytes: int  # parameters, optimizer state, accumulated gradients, moving average
    teacher: GPTConfig | None  # the shape of a teacher

    @property
    def flops(self) -> int:
        """FLOPs of the matmuls, recomputation in the backward pass included."""
        return sum(op.count * op.flops for op in self.operations)

    @property
    def bytes(self) -> int:
        """Memory traffic if nothing were read twice and nothing spilled."""
        return self.update_bytes + sum(op.count * op.bytes for op in self.operations)

    @property
    def flops_by_arithmetic(self) -> dict[str, int]:
        """`flops`, split by the arithmetic of the multiplications, most first."""
        flops: Counter[str] = Counter()
        for op in self.operations:
            flops[op.arithmetic] += op.count * op.flops
        return dict(flops.most_common())

    def seconds(self, peaks: dict[str, float], bandwidth: float) -> float:
        """Returns the time of a step in which each operation runs at the lower of its two roofs.

        `peaks` are FLOP/s by arithmetic.
        """
        return self.update_bytes / bandwidth + sum(
            op.count * max(op.flops / peaks[op.arithmetic], op.bytes / bandwidth)
            for op in self.operations
        )


def trace_step(config: ConfigDict, steps: StepFunctions, state: Any) -> Traced:
    """Returns the traced train step of `step_functions`; allocates nothing."""
    batch = _batch(config, steps, config.train.gradient_accumulation_steps)
    with _cudnn_assumed(steps.model_config.attention):
        return steps.train_step.trace(state, batch, None, *_teacher_params(steps))


def trace_evaluation(config: ConfigDict, steps: StepFunctions, state: Any) -> Traced:
    """Returns the traced evaluation step of `step_functions`; allocates nothing."""
    with _cudnn_assumed(steps.model_config.attention):
        return steps.eval_step.trace(state.params, _batch(config, steps, 1))


def step_functions(
    config: ConfigDict, model_config: GPTConfig, mesh: Mesh
) -> tuple[StepFunctions, Any]:
    """Returns the functions of a run, and the shapes of the state that they take."""
    steps = StepFunctions(config, model_config, np.zeros(model_config.vocab_size, np.int32), mesh)
    state = jax.tree.map(
        lambda x, sharding: x.update(sharding=sharding), steps.state_shapes, steps.state_shardings
    )
    return steps, state


def _teacher_params(steps: StepFunctions) -> tuple[Any, ...]:
    """Returns the shapes of the parameters of a teacher; () without one."""
    if (teacher := steps.teacher) is None:
        return ()
    shapes = jax.eval_shape(lambda: init(teacher, jax.random.key(0)))
    dtype = teacher.compute_dtype
    return (jax.tree.map(lambda x: x.update(dtype=dtype), shapes),)


def _batch(
    config: ConfigDict, steps: StepFunctions, n_micro: int
) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (n_micro, config.train.batch_size, steps.model_config.block_size)
    dtypes = {"inputs": np.int32, "targets": np.int32, "loss_mask": np.bool_}
    if config.data.document_mask:
        dtypes |= {"segment_ids": np.int32, "positions": np.int32}
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=steps.batch_sharding)
        for name, dtype in dtypes.items()
    }


@contextlib.contextmanager
def _cudnn_assumed(attention: str) -> Iterator[None]:
    """Lets cuDNN's attention be traced without a GPU: JAX asks cuDNN for its version then."""
    if attention != "cudnn" or jax.default_backend() == "gpu":
        yield
        return
    from jax._src.cudnn import fused_attention_stablehlo  # private: imported only if needed

    check = fused_attention_stablehlo.check_cudnn_version
    fused_attention_stablehlo.check_cudnn_version = lambda: _CUDNN_VERSION
    try:
        yield
    finally:
        fused_attention_stablehlo.check_cudnn_version = check


def analyze(config: ConfigDict, model_config: GPTConfig) -> StepCost:
    """Returns the cost of one optimizer step of `config` with all rows on one device."""
    unrolled = model_config.scan_unroll >= model_config.n_layer
    model_config = dataclasses.replace(model_config, scan_unroll=1)  # one scan over the layers
    mesh = make_mesh(1, jax.devices()[:1])
    steps, state = step_functions(config, model_config, mesh)
    traced = trace_step(config, steps, state)
    kept_bytes = _kept(traced, model_config.n_layer)
    if unrolled and model_config.remat == "none":  # not JAX but XLA decides what is kept
        with_dots = dataclasses.replace(model_config, remat="dots")
        traced_dots = trace_step(config, *step_functions(config, with_dots, mesh))
        saved = _kept(traced_dots, model_config.n_layer)
        kept_bytes = round(_KEPT_TO_DOTS * saved)
    micro_steps = config.train.gradient_accumulation_steps
    param_bytes, state_bytes = (_size(jax.tree.leaves(tree)) for tree in (state.params, state))
    # The update reads and writes all of the state: it clears the mean of gradients, once read.
    # A micro-step reads its gradient and the mean so far, and writes the mean.
    gradient_passes = 3 * micro_steps if micro_steps > 1 else 1
    return StepCost(
        operations=tuple(_operations(traced.jaxpr.jaxpr, 1)),
        update_bytes=2 * state_bytes + gradient_passes * param_bytes,
        kept_bytes=kept_bytes,
        state_bytes=state_bytes,
        teacher=steps.teacher,
    )


def _operations(jaxpr: Jaxpr, count: int) -> Iterator[Operation]:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        bytes_moved = _size(eqn.invars) + _size(eqn.outvars)
        if name == "dot_general":
            (lhs_axes, _), _ = eqn.params["dimension_numbers"]
            contracted = math.prod(_shape(eqn.invars[0])[axis] for axis in lhs_axes)
            flops = 2 * contracted * math.prod(_shape(eqn.outvars[0]))
            yield Operation(name, count, flops, bytes_moved, _arithmetic(eqn))
        elif name in _KERNELS:
            yield Operation(name, count, _kernel_flops(eqn), bytes_moved, _arithmetic(eqn))
        else:
            runs = count * eqn.params["length"] if name == "scan" else count
            for inner in jaxprs_in_params(eqn.params):
                yield from _operations(inner, runs)


def _arithmetic(eqn: JaxprEqn) -> str:
    """Returns what a GPU multiplies in: it rounds float32 unless a precision is asked for."""
    precision = eqn.params.get("precision")
    if isinstance(precision, DotAlgorithmPreset):
        return "bfloat16" if precision.name.startswith("BF16_BF16") else "float32"
    operands: list[Any] = eqn.invars[:2]
    if all(x.aval.dtype != np.float32 for x in operands):
        return "bfloat16"
    return "tf32" if precision in _DEFAULT_PRECISIONS else "float32"


def _kernel_flops(eqn: JaxprEqn) -> int:
    """Returns the FLOPs of a flash-attention kernel, which skips the masked half.

    Forward two matmuls of T x T x H for each row and head, backward five (Dao et al. 2022); a
    kernel that only prepares the backward pass returns no array [B, T, heads, H].
    """
    batch, length, heads, width = _shape(eqn.invars[0])
    shapes = [_shape(out) for out in eqn.outvars]
    n_like_heads = sum(len(s) == 4 and (*s[:2], s[3]) == (batch, length, width) for s in shapes)
    matmuls = {0: 0, 1: 2, 3: 5}[n_like_heads]
    return matmuls * batch * heads * length * length * width


def _kept(traced: Traced, n_layer: int) -> int:
    """Returns the bytes that the forward scan over the layers stacks beside its carry.

    That of a teacher, which may have as many layers, stacks none.
    """
    found = []
    for scan in _scans(traced.jaxpr.jaxpr):
        is_forward = scan.params["length"] == n_layer and not scan.params["reverse"]
        body = scan.params["jaxpr"].jaxpr
        if is_forward and any(True for _ in _operations(body, 1)):
            results = zip(scan.outvars, body.outvars, strict=True)
            found.append(_size([whole for whole, one in results if _shape(whole) != _shape(one)]))
    if not found:
        raise ValueError(f"the step has no scan over {n_layer} layers")
    return max(found)


def _scans(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Yields all scans, an inner one before the one that holds it."""
    for eqn in jaxpr.eqns:
        for inner in jaxprs_in_params(eqn.params):
            yield from _scans(inner)
        if eqn.primitive.name == "scan":
            yield eqn


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _size(values: Any) -> int:
    """Returns the bytes of variables, arrays or shapes."""
    shaped = [getattr(value, "aval", value) for value in values]
    return sum(x.size * x.dtype.itemsize for x in shaped)
