"""AdamW and Muon, clipping, and accumulation by `optax.MultiSteps`."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from gptjax.optim.muon import at_the_last, muon
from gptjax.optim.schedules import muon_schedule, schedule, weight_decay
from gptjax.optim.skip_bad_steps import guard


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
