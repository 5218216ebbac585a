"""AdamW, warm-up and cosine decay, clipping, gradient accumulation by `optax.MultiSteps`."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from gptjax.guard import guard


def schedule(optim: ConfigDict) -> optax.Schedule:
    """Returns learning rate by optimizer steps completed: warm-up, cosine to `min_lr`, constant.

    The first step has learning_rate / (warmup_iters + 1), not zero, so that no step is wasted.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=optim.learning_rate / (optim.warmup_iters + 1),
        peak_value=optim.learning_rate,
        warmup_steps=optim.warmup_iters,
        decay_steps=optim.lr_decay_iters,
        end_value=optim.min_lr,
    )


def decay_mask(params: Any) -> Any:
    """Returns True for the leaves that are decayed: matrices, not LayerNorm scales or biases.

    By name, because the stacking of layers makes matrices of vectors.

    Raises:
        ValueError: for a leaf of an unknown name, so that a new parameter is not forgotten here.
    """
    decayed = {"kernel": True, "wte": True, "wpe": True, "scale": False, "bias": False}

    def is_decayed(path: tuple[Any, ...], _: Any) -> bool:
        name = path[-1].key
        if name not in decayed:
            raise ValueError(f"no weight-decay group for {jax.tree_util.keystr(path)}")
        return decayed[name]

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_optimizer(
    optim: ConfigDict, accumulation_steps: int, max_loss_spike: float = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Returns the guarded optimizer; its `update` takes `loss` besides the usual arguments.

    With `accumulation_steps` > 1 it takes the gradients of that many micro-steps, averages them and
    updates at the last; schedules count updates, not micro-steps. The last `loss` counts.
    """
    adamw = optax.adamw(
        schedule(optim),
        b1=optim.beta1,
        b2=optim.beta2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        mask=decay_mask,
    )
    clip = optax.clip_by_global_norm(optim.grad_clip) if optim.grad_clip else optax.identity()
    optimizer = guard(optax.chain(clip, adamw), max_loss_spike)
    if accumulation_steps == 1:
        return optimizer
    multi_steps = optax.MultiSteps(optimizer, accumulation_steps)
    return optax.GradientTransformationExtraArgs(multi_steps.init, multi_steps.update)
