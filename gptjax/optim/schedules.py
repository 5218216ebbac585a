"""Learning rates and weight decay as functions of the optimizer steps completed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict


def learning_rate_schedule(optim: ConfigDict, max_iters: int) -> optax.Schedule:
    """Returns the learning rate of AdamW.

    `cosine` falls from the peak to `min_lr` at `lr_decay_iters`; after each step of `rewarm_at` it
    warms up again, from where it is, and falls until the next of them, or `max_iters`. `wsd`
    (warm-up, stable, decay: Hu et al. 2024, MiniCPM) stays at the peak until `wsd_decay_iters`
    steps before `max_iters`, so that a run can be made longer until then, and falls by
    1 - sqrt(progress), which Haegele et al. 2024 found better than a line for a fall of a fifth of
    the run, or by a line (`wsd_fall`). Both keep `min_lr` after.

    The first step has learning_rate / (warmup_iters + 1), not zero, so that no step is wasted.
    """
    if optim.schedule == "cosine":
        cycles = [_cosine(optim, 0.0, optim.lr_decay_iters)]
        starts = [0, *optim.rewarm_at, max_iters]
        for before, start, end in zip(starts, starts[1:], starts[2:], strict=False):
            cycles.append(_cosine(optim, float(cycles[-1](start - before)), end - start))
        return optax.join_schedules(cycles, optim.rewarm_at)

    def decay(steps: jax.typing.ArrayLike) -> jax.Array:
        progress = jnp.clip(jnp.asarray(steps) / max(optim.wsd_decay_iters, 1), 0, 1)
        fallen = jnp.sqrt(progress) if optim.wsd_fall == "sqrt" else progress
        return optim.min_lr + (optim.learning_rate - optim.min_lr) * (1 - fallen)

    return optax.join_schedules(
        [
            optax.linear_schedule(_first(optim, 0.0), optim.learning_rate, optim.warmup_iters),
            optax.constant_schedule(optim.learning_rate),
            decay,
        ],
        [optim.warmup_iters, decay_start(optim, max_iters)],
    )


def _first(optim: ConfigDict, before: float) -> float:
    """Returns the first learning rate of a warm-up that follows the rate `before`."""
    first: float = before + (optim.learning_rate - before) / (optim.warmup_iters + 1)
    return first


def _cosine(optim: ConfigDict, before: float, n_steps: int) -> optax.Schedule:
    """Returns a cycle: a warm-up from the rate `before`, then a fall until step `n_steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=_first(optim, before),
        peak_value=optim.learning_rate,
        warmup_steps=optim.warmup_iters,
        decay_steps=n_steps,
        end_value=optim.min_lr,
    )


def rewarm_notice(optim: ConfigDict, max_iters: int) -> str:
    """Returns what the last step of `rewarm_at` changes and costs; "" without one."""
    if not optim.rewarm_at:
        return ""
    start = optim.rewarm_at[-1]
    rates = np.asarray(learning_rate_schedule(optim, max_iters)(jnp.arange(start - 1, max_iters)))
    return (
        f"After step {start:,} the learning rate rises again, from {rates[0]:.2g} to "
        f"{optim.learning_rate:.2g} in {optim.warmup_iters:,} steps, and falls to "
        f"{optim.min_lr:.2g} at step {max_iters:,} (optim.rewarm_at). The cost: it is higher than "
        f"before for {np.sum(rates > rates[0]):,} of the {max_iters - start:,} steps, in which the "
        f"loss rises and then regains what the fall before had gained. A run that is planned with "
        f"{max_iters:,} steps usually ends lower (Ibrahim et al. 2024; Haegele et al. 2024)."
    )


def muon_learning_rate_schedule(optim: ConfigDict, max_iters: int) -> optax.Schedule:
    """Returns the learning rate of Muon: AdamW's, with its peak moved to `muon_learning_rate`."""
    return _moved(optim, max_iters, optim.muon_learning_rate)


def _moved(optim: ConfigDict, max_iters: int, peak: float) -> optax.Schedule:
    rate, factor = learning_rate_schedule(optim, max_iters), peak / optim.learning_rate
    return lambda steps: factor * rate(steps)


def weight_decay(optim: ConfigDict, max_iters: int) -> float | optax.Schedule:
    """Returns the weight decay; `linear` reaches `weight_decay_end` at `max_iters`.

    A step takes this times its learning rate off a weight, so the decay follows the learning rate
    in any case. A constant is no schedule, which would add a counter to the optimizer's state.
    """
    if optim.weight_decay_schedule == "constant":
        decay: float = optim.weight_decay
        return decay
    return optax.linear_schedule(optim.weight_decay, optim.weight_decay_end, max_iters)


def later_token_weights(train: ConfigDict, steps: jax.typing.ArrayLike) -> jax.Array:
    """Returns the weights [..., K] of later tokens in the loss after `steps` [...] steps."""
    left = 1 - jnp.asarray(steps) / max(train.later_tokens_iters, 1)
    weights_K = jnp.asarray(train.later_tokens, jnp.float32)
    return jnp.multiply.outer(jnp.maximum(left, 0), weights_K)


def schedules(optim: ConfigDict, max_iters: int) -> dict[str, optax.Schedule]:
    """Returns the schedules of a run by the configuration key of their peak."""
    decay = weight_decay(optim, max_iters)
    by_key = {
        "learning_rate": learning_rate_schedule(optim, max_iters),
        "weight_decay": decay if callable(decay) else optax.constant_schedule(decay),
    }
    if optim.head_learning_rate:
        by_key["head_learning_rate"] = _moved(optim, max_iters, optim.head_learning_rate)
    if optim.optimizer == "muon":
        by_key["muon_learning_rate"] = muon_learning_rate_schedule(optim, max_iters)
    return by_key


def decay_start(optim: ConfigDict, max_iters: int) -> int:
    """Returns the optimizer steps completed when the learning rate begins to fall."""
    return optim.warmup_iters if optim.schedule == "cosine" else max_iters - optim.wsd_decay_iters
