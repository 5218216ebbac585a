"""AdamW and Muon, what varies over steps, clipping, accumulation by `optax.MultiSteps`."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from gptjax.guard import guard
from gptjax.muon import at_the_last, muon


def schedule(optim: ConfigDict, max_iters: int) -> optax.Schedule:
    """Returns learning rate by optimizer steps completed, the first of a linear warm-up.

    `cosine` falls from the peak to `min_lr` at `lr_decay_iters`. `wsd` (warm-up, stable, decay: Hu
    et al. 2024, MiniCPM) stays at the peak until `wsd_decay_iters` steps before `max_iters`, so
    that a run can be made longer until then, and falls by 1 - sqrt(progress), which Haegele et al.
    2024 found better than a line. Both keep `min_lr` after.

    The first step has learning_rate / (warmup_iters + 1), not zero, so that no step is wasted.
    """
    first = optim.learning_rate / (optim.warmup_iters + 1)
    if optim.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            init_value=first,
            peak_value=optim.learning_rate,
            warmup_steps=optim.warmup_iters,
            decay_steps=optim.lr_decay_iters,
            end_value=optim.min_lr,
        )

    def decay(steps: jax.typing.ArrayLike) -> jax.Array:
        progress = jnp.clip(jnp.asarray(steps) / max(optim.wsd_decay_iters, 1), 0, 1)
        return optim.min_lr + (optim.learning_rate - optim.min_lr) * (1 - jnp.sqrt(progress))

    return optax.join_schedules(
        [
            optax.linear_schedule(first, optim.learning_rate, optim.warmup_iters),
            optax.constant_schedule(optim.learning_rate),
            decay,
        ],
        [optim.warmup_iters, decay_start(optim, max_iters)],
    )


def muon_schedule(optim: ConfigDict, max_iters: int) -> optax.Schedule:
    """Returns the learning rate of Muon: `schedule`, its peak moved to `muon_learning_rate`."""
    rate, scale = schedule(optim, max_iters), optim.muon_learning_rate / optim.learning_rate
    return lambda steps: scale * rate(steps)


def weight_decay(optim: ConfigDict, max_iters: int) -> float | optax.Schedule:
    """Returns the weight decay, by optimizer steps completed if it is not constant.

    A step takes this times its learning rate off a weight, so that the decay follows the learning
    rate in any case. `linear` goes to `weight_decay_end` at `max_iters`.
    """
    if optim.weight_decay_schedule == "constant":
        decay: float = optim.weight_decay
        return decay
    return optax.linear_schedule(optim.weight_decay, optim.weight_decay_end, max_iters)


def schedules(optim: ConfigDict, max_iters: int) -> dict[str, optax.Schedule]:
    """Returns what decides how a step is made and may vary over steps, by the key of its peak."""
    decay = weight_decay(optim, max_iters)
    found = {
        "learning_rate": schedule(optim, max_iters),
        "weight_decay": decay if callable(decay) else optax.constant_schedule(decay),
    }
    if optim.optimizer == "muon":
        found["muon_learning_rate"] = muon_schedule(optim, max_iters)
    return found


def decay_start(optim: ConfigDict, max_iters: int) -> int:
    """Returns the optimizer steps completed when the learning rate begins to fall."""
    return optim.warmup_iters if optim.schedule == "cosine" else max_iters - optim.wsd_decay_iters


def decay_mask(params: Any) -> Any:
    """Returns True for the leaves that are decayed: matrices, not LayerNorm scales or biases.

    By name, because the stacking of layers makes matrices of vectors.

    Raises:
        ValueError: for a leaf of an unknown name, so that a new parameter is not forgotten here.
    """
    decayed = dict.fromkeys(("kernel", "wte", "wpe", "lm_head"), True)
    decayed |= dict.fromkeys(("scale", "bias"), False)

    def is_decayed(path: tuple[Any, ...], _: Any) -> bool:
        name = path[-1].key
        if name not in decayed:
            raise ValueError(f"no weight-decay group for {jax.tree_util.keystr(path)}")
        return decayed[name]

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def param_labels(params: Any) -> Any:
    """Returns `muon` for the matrices inside blocks, `adamw` for all else, with `optimizer` = muon.

    Embeddings and the head are tables of vectors, each moved by few tokens: Muon is not for them.

    Raises:
        ValueError: for a leaf of an unknown name, or a kernel that is not stacked (L, in, out).
    """
    decay_mask(params)  # knows all names

    def group(path: tuple[Any, ...], leaf: Any) -> str:
        if path[-1].key != "kernel":
            return "adamw"
        if leaf.ndim != 3:
            raise ValueError(f"{jax.tree_util.keystr(path)} has {leaf.ndim} axes: not (L, in, out)")
        return "muon"

    return jax.tree_util.tree_map_with_path(group, params)


def make_optimizer(
    optim: ConfigDict,
    accumulation_steps: int,
    max_iters: int,
    *,
    loss_spike_sigma: float = 0.0,
    compute_dtype: str = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Returns the guarded optimizer; its `update` takes `loss` besides the usual arguments.

    With `accumulation_steps` > 1 it takes the gradients of that many micro-steps, averages them and
    updates at the last; schedules count updates, not micro-steps. The last `loss` counts. `update`
    takes `last`, too, then: whether this micro-step is the last.

    Args:
        optim: see configs/base.py.
        accumulation_steps: micro-steps an update.
        max_iters: updates of the run, on which schedules may depend.
        loss_spike_sigma: see `guard`.
        compute_dtype: of Muon's matmuls.
    """
    optimizer = optax.adamw(
        schedule(optim, max_iters),
        b1=optim.beta1,
        b2=optim.beta2,
        eps=optim.eps,
        weight_decay=weight_decay(optim, max_iters),
        mask=decay_mask,
    )
    if optim.optimizer == "muon":
        hidden = muon(
            muon_schedule(optim, max_iters),
            momentum=optim.muon_momentum,
            weight_decay=weight_decay(optim, max_iters),
            compute_dtype=compute_dtype,
        )
        if accumulation_steps > 1:
            hidden = at_the_last(hidden)
        optimizer = optax.partition({"muon": hidden, "adamw": optimizer}, param_labels)
    clip = optax.clip_by_global_norm(optim.grad_clip) if optim.grad_clip else optax.identity()
    optimizer = guard(optax.chain(clip, optimizer), loss_spike_sigma)
    if accumulation_steps == 1:
        return optimizer
    multi_steps = optax.MultiSteps(optimizer, accumulation_steps)
    return optax.GradientTransformationExtraArgs(multi_steps.init, multi_steps.update)
