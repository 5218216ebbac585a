"""AdamW and Muon, clipping, skipping of bad steps, and accumulation by `optax.MultiSteps`."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from gptjax.optim.muon import muon, only_at_last
from gptjax.optim.schedules import learning_rate_schedule, muon_learning_rate_schedule, weight_decay
from gptjax.optim.skip_bad_steps import skip_bad_steps


def decay_mask(params: Any) -> Any:
    """Returns True for the leaves with weight decay: matrices, not scales of norms or biases.

    By name, because stacked layers turn vectors into matrices; ValueError for an unknown name.
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
    Raises ValueError for an unknown name, or a kernel that is not stacked (L, in, out).
    """
    decay_mask(params)  # checks the names

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        if path[-1].key != "kernel":
            return "adamw"
        if leaf.ndim != 3:
            raise ValueError(f"{jax.tree_util.keystr(path)} has {leaf.ndim} axes: not (L, in, out)")
        return "muon"

    return jax.tree_util.tree_map_with_path(label, params)


def make_optimizer(
    optim: ConfigDict,
    accumulation_steps: int,
    max_iters: int,
    *,
    loss_spike_sigma: float = 0.0,
    compute_dtype: str = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of `config.optim`; its `update` takes `loss`, see `skip_bad_steps`.

    With `accumulation_steps` > 1 it averages the gradients of that many micro-steps and updates at
    the last, of which `update` is informed by `last`, and whose `loss` counts. Schedules depend on
    updates, not micro-steps, and on their number in the run, `max_iters`.
    """
    optimizer = optax.adamw(
        learning_rate_schedule(optim, max_iters),
        b1=optim.beta1,
        b2=optim.beta2,
        eps=optim.eps,
        weight_decay=weight_decay(optim, max_iters),
        mask=decay_mask,
    )
    if optim.optimizer == "muon":
        hidden = muon(
            muon_learning_rate_schedule(optim, max_iters),
            momentum=optim.muon_momentum,
            weight_decay=weight_decay(optim, max_iters),
            compute_dtype=compute_dtype,
        )
        if accumulation_steps > 1:
            hidden = only_at_last(hidden)
        optimizer = optax.partition({"muon": hidden, "adamw": optimizer}, param_labels)
    clip = optax.clip_by_global_norm(optim.grad_clip) if optim.grad_clip else optax.identity()
    optimizer = skip_bad_steps(optax.chain(clip, optimizer), loss_spike_sigma)
    if accumulation_steps == 1:
        return optimizer
    multi_steps = optax.MultiSteps(optimizer, accumulation_steps)
    return optax.GradientTransformationExtraArgs(multi_steps.init, multi_steps.update)
