"""What a train step computes, moves and keeps, read off its jaxpr; nothing is compiled."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptjax.model.config import GPTConfig
from gptjax.step.sharding import make_mesh
from gptjax.step.train_step import StepFunctions

# JAX asks cuDNN for its version when attention is traced; a program that is only planned is told
# this one, which has all that we use.
_CUDNN_VERSION = 91000
_KERNELS = ("pallas_call", "dot_product_attention_fwd_wrapper", "dot_product_attention_bwd_wrapper")


@dataclasses.dataclass(frozen=True)
class Operation:
    """A matmul or an attention kernel of the step."""

    name: str
    count: int  # how often a step runs it
    flops: int  # of one run
    bytes: int  # of one run: operands read once, results written once


@dataclasses.dataclass(frozen=True)
class StepCost:
    """One optimizer step on one device; elementwise work counts as fused into its neighbours."""

    operations: tuple[Operation, ...]
    update_bytes: int  # gradients accumulated, parameters, optimizer and average updated
    kept_bytes: int  # what the layers of a micro-step keep for its backward pass
    state_bytes: int  # parameters, what the optimizer keeps of them, accumulated gradients, average

    @property
    def flops(self) -> int:
        """FLOPs of the matmuls, what the backward pass computes again included."""
        return sum(op.count * op.flops for op in self.operations)

    @property
    def bytes(self) -> int:
        """Bytes between the chip and its memory, were nothing read twice and nothing spilt."""
        return self.update_bytes + sum(op.count * op.bytes for op in self.operations)

    def seconds(self, peak_flops: float, bandwidth: float) -> float:
        """Returns the time of a step whose every operation reaches the nearer of its two roofs."""
        return self.update_bytes / bandwidth + sum(
            op.count * max(op.flops / peak_flops, op.bytes / bandwidth) for op in self.operations
        )


def abstract_step(
    config: ConfigDict, model_config: GPTConfig, mesh: Mesh
) -> tuple[StepFunctions, Any, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the functions of a run and the shapes of a state and a batch, placed on `mesh`."""
    steps = StepFunctions(config, model_config, np.zeros(model_config.vocab_size, np.int32), mesh)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        *(steps.state_shapes, steps.state_shardings),
    )
    train = config.train
    shape = (train.gradient_accumulation_steps, train.batch_size, model_config.block_size)
    dtypes = {"inputs": np.int32, "targets": np.int32, "loss_mask": np.bool_}
    if config.data.document_mask:
        dtypes |= {"segment_ids": np.int32, "positions": np.int32}
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=steps.batch_sharding)
        for name, dtype in dtypes.items()
    }
    return steps, state, batch


@contextlib.contextmanager
def cudnn_assumed() -> Iterator[None]:
    """Lets cuDNN's attention be traced and compiled where there is no GPU."""
    if jax.default_backend() == "gpu":
        yield
        return
    check = fused_attention_stablehlo.check_cudnn_version
    fused_attention_stablehlo.check_cudnn_version = lambda: _CUDNN_VERSION
    try:
        yield
    finally:
        fused_attention_stablehlo.check_cudnn_version = check


def measure(config: ConfigDict, model_config: GPTConfig) -> StepCost:
    """Returns the cost of one optimizer step of `config`, all its rows on one device."""
    model_config = dataclasses.replace(
        model_config, scan_unroll=1
    )  # so that the layers are one scan
    steps, state, batch = abstract_step(config, model_config, make_mesh(1, jax.devices()[:1]))
    with cudnn_assumed():
        jaxpr = steps.train_step.trace(state, batch).jaxpr.jaxpr
    micro_steps = config.train.gradient_accumulation_steps
    param_bytes, state_bytes = (_size(jax.tree.leaves(tree)) for tree in (state.params, state))
    # An update reads a gradient, and reads and writes all of the state. MultiSteps reads a gradient
    # and the sum so far, and writes the sum, which is not touched again then.
    accumulated = param_bytes if micro_steps > 1 else 0
    update_bytes = param_bytes + 2 * (state_bytes - accumulated) + 3 * micro_steps * accumulated
    return StepCost(
        operations=tuple(_operations(jaxpr, 1)),
        update_bytes=update_bytes,
        kept_bytes=_kept(jaxpr, model_config.n_layer),
        state_bytes=state_bytes,
    )


def _operations(jaxpr: Jaxpr, count: int) -> Iterator[Operation]:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        bytes_moved = _size(eqn.invars) + _size(eqn.outvars)
        if name == "dot_general":
            (lhs_axes, _), _ = eqn.params["dimension_numbers"]
            contracted = math.prod(_shape(eqn.invars[0])[axis] for axis in lhs_axes)
            flops = 2 * contracted * math.prod(_shape(eqn.outvars[0]))
            yield Operation(name, count, flops, bytes_moved)
        elif name in _KERNELS:
            yield Operation(name, count, _kernel_flops(eqn), bytes_moved)
        else:
            times = eqn.params["length"] if name == "scan" else 1
            # What hangs on a condition is done once a step: Muon's matmuls, at the last micro-step.
            runs = 1 if name == "cond" else count * times
            for inner in jaxprs_in_params(eqn.params):
                yield from _operations(inner, runs)


def _kernel_flops(eqn: JaxprEqn) -> int:
    """Returns the FLOPs of a flash-attention kernel, which skips the half that causality hides.

    Forward two matmuls of T x T x H for each row and head, backward five (Dao et al. 2022); what
    only prepares the backward pass gives no array [B, T, heads, H], as queries and keys are.
    """
    batch, length, heads, width = _shape(eqn.invars[0])
    shapes = [_shape(out) for out in eqn.outvars]
    n_like_heads = sum(len(s) == 4 and (*s[:2], s[3]) == (batch, length, width) for s in shapes)
    matmuls = {0: 0, 1: 2, 3: 5}[n_like_heads]
    return matmuls * batch * heads * length * length * width


def _kept(jaxpr: Jaxpr, n_layer: int) -> int:
    """Returns the bytes that the forward scan over layers stacks up beside its carry."""
    for scan in _scans(jaxpr):
        is_forward = scan.params["length"] == n_layer and not scan.params["reverse"]
        if is_forward and any(True for _ in _operations(scan.params["jaxpr"].jaxpr, 1)):
            return _size(scan.outvars[scan.params["num_carry"] :])
    raise ValueError(f"the step has no scan over {n_layer} layers")


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
    total = 0
    for value in values:
        aval = getattr(value, "aval", value)
        total += aval.size * aval.dtype.itemsize
    return total
