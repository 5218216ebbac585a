"""Peak memory of a train step, estimated without compiling, and the largest batch that fits."""

import copy
import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
from ml_collections import ConfigDict

from gptjax.model import GPTConfig, count_params
from gptjax.plan.step_cost import StepCost

# Memory of one layer's backward pass, by `remat`: arrays [B, T, D] of the compute dtype, and part
# of the gradients' bytes. Attention adds more such arrays, or float32 scores [B, N, T, T].
# From XLA's buffer assignments for sm_89 (jax 0.10.2): see tests/plan/test_memory.py.
_LAYER_ARRAYS = {"none": 18, "dots": 24, "full": 17}
_FULL_TURNED_HEADS, _FULL_GATE = 5, 2.5  # more in `full`: float32 queries and keys; SwiGLU
_LAYER_GRADIENTS = {"none": 0, "dots": 0, "full": 0.45}
_CHUNKED_ARRAYS = {"none": 22, "dots": 22, "full": 13}
_XLA_SCORES = {"none": 2.4, "dots": 2.4, "full": 2.0}

# Layers that are not in a loop overlap: results of some exist before those of others are consumed.
# In parts of the gradients of the layers' matrices, and arrays for each layer.
_UNROLLED_GRADIENTS = {"none": 0, "dots": 1.6, "full": 0.5}
_UNROLLED_ARRAYS = 2.8  # `dots`: at most
_UNROLLED_LOSS_GRADIENTS, _UNROLLED_LOSS_ARRAYS = 0.8, 2.0  # in the loss; arrays in `full`
_UNROLLED_SCORES = 1.5  # `none`: scores kept by each layer

TOLERANCE = 0.1  # relative error of the estimate, to either side of the compiled figure


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device at the peak of a step."""

    state: int  # parameters, optimizer state, accumulated gradients, moving average, a teacher
    batch: int  # token ids and masks of a step
    kept: int  # activations saved for the backward pass
    work: int  # gradients and temporaries

    @property
    def total(self) -> int:
        """Peak memory."""
        return self.state + self.batch + self.kept + self.work


def estimate(config: ConfigDict, model_config: GPTConfig, cost: StepCost, n_devices: int) -> Memory:
    """Returns the memory of one device, within TOLERANCE of what XLA assigns for an NVIDIA card.

    The peak of a micro-step is either in the loss, or in the backward pass of the first layers,
    when all gradients exist; with a small batch in the update. An evaluation needs less: it has the
    logits of the loss, and neither their gradient nor what is kept. `cost` is of the same
    configuration; the batch is split over all devices, the state over `mesh.fsdp` of them. Of the
    parameters that are gathered once a step, a device has whole float32 copies and gradients. With
    `mesh.fsdp` and a single micro-step the figure is off by up to a quarter.
    """
    train, remat = config.train, model_config.remat
    micro_steps, n_layer = train.gradient_accumulation_steps, model_config.n_layer
    n_params, n_hidden = count_params(model_config)
    itemsize = jnp.dtype(model_config.compute_dtype).itemsize
    rows = train.batch_size / n_devices
    tokens = rows * model_config.block_size
    activation = tokens * model_config.n_embd * itemsize  # bytes of an array [B, T, D]
    head = model_config.vocab_size * model_config.n_embd * itemsize
    scores = 4 * rows * model_config.n_head * model_config.block_size**2
    unrolled = model_config.scan_unroll >= n_layer
    gradients, hidden_gradients, gathered = 4.0 * n_params, 4.0 * n_hidden, 0.0
    if (fsdp := config.mesh.fsdp) > 1:
        by_layer = config.mesh.gather == "layer"
        whole = n_params - n_hidden * by_layer
        gathered = (4.0 if micro_steps == 1 else 8.0) * whole  # and the sums of their gradients
        if by_layer:
            if not unrolled:  # else XLA sums those of all layers at once
                gradients -= (1 - 1 / fsdp) * hidden_gradients
            hidden_gradients /= fsdp

    chunk = config.model.loss_chunk or tokens
    in_chunks = chunk < tokens
    logits = (4 + itemsize) * chunk * model_config.vocab_size  # float32, and their gradient
    if train.later_tokens or cost.teacher:
        # XLA keeps the logits beside the float32 sum of their gradients, or those of the teacher.
        logits += 4 * chunk * model_config.vocab_size
    teacher_params, teacher_states = 0, 0.0
    if cost.teacher is not None:
        teacher_params = count_params(cost.teacher)[0] * itemsize
        teacher_states = tokens * cost.teacher.n_embd * itemsize
    loss = (
        teacher_states
        + logits
        + (3 if in_chunks else 1) * head
        + (4.5 if in_chunks else 2) * activation
    )
    if unrolled and not in_chunks and remat != "none":
        loss += _UNROLLED_LOSS_GRADIENTS * hidden_gradients
        loss += _UNROLLED_LOSS_ARRAYS * n_layer * activation * (remat == "full")

    arrays: float = _LAYER_ARRAYS[remat]
    if model_config.attention == "chunked":
        arrays += _CHUNKED_ARRAYS[remat]
    if remat == "full":  # the peak is in attention, or in the rest of the layer
        heads = _FULL_TURNED_HEADS * (model_config.qk_norm or model_config.position == "rope")
        gate = _FULL_GATE * (model_config.mlp == "swiglu")
        arrays = max(arrays, _LAYER_ARRAYS["full"] + heads + gate)
    backward = (1 + _LAYER_GRADIENTS[remat]) * gradients + arrays * activation
    if model_config.attention == "xla":
        backward += _XLA_SCORES[remat] * scores
    if unrolled:
        overlap = _UNROLLED_GRADIENTS[remat] * hidden_gradients
        most = _UNROLLED_ARRAYS * n_layer * activation if remat == "dots" else overlap
        backward += min(overlap, most)

    # Without accumulation all gradients and updates exist at once; of what is split, its shards.
    update = (2.1 if micro_steps == 1 else 1.5) * 4 * n_params / fsdp
    kept = cost.kept_bytes / n_devices
    if unrolled and remat == "none" and model_config.attention == "xla":
        kept += _UNROLLED_SCORES * n_layer * scores
    bytes_per_token = 4 + 4 + 1 + (8 if config.data.document_mask else 0)
    return Memory(
        state=cost.state_bytes // fsdp + teacher_params,
        batch=round(micro_steps * tokens * bytes_per_token),
        kept=round(kept),
        work=round(gathered + max(loss, backward, update - kept)),
    )


def batch_step(model: ConfigDict, n_devices: int) -> int:
    """Returns the number of which a batch size must be a multiple, given `config.model`."""
    if model.loss_chunk == 0:
        return n_devices
    return n_devices * (model.loss_chunk // math.gcd(model.loss_chunk, model.block_size))


def with_batch_size(config: ConfigDict, batch_size: int) -> ConfigDict:
    """Returns a copy of `config` with that `train.batch_size`."""
    config = copy.deepcopy(config)
    config.train.batch_size = batch_size
    return config


def largest_batch(fits: Callable[[int], bool], step: int) -> int:
    """Returns the largest multiple of `step` that fits, 0 if none; `fits` must be monotonic."""
    low, high = 0, step
    while fits(high):
        low, high = high, 2 * high
    while high - low > step:
        middle = (low + high) // (2 * step) * step
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
