"""Skips updates whose loss or gradient is not finite, or whose loss is a spike.

It wraps an optimizer and decides once an update, also where `optax.MultiSteps` accumulates
gradients around it: their mean is finite only if each of them is. Its counts are part of the
optimizer's state, so a resumed run skips what an uninterrupted one skips.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

WINDOW = 128  # W, losses that a spike is compared with
_MIN_LOSSES = WINDOW // 2  # with fewer, nothing is a spike


class SkipState(NamedTuple):
    """The wrapped optimizer's state and the skipped updates; checkpoints go by the names."""

    inner_state: Any
    skipped: Array  # int32 scalar, updates skipped so far
    in_a_row: Array  # int32 scalar, those since the last update that was not skipped
    grad_norm: Array  # float32 scalar, global L2 norm of the last gradient, skipped or not
    losses_W: Array  # float32, a ring buffer
    n_losses: Array  # int32 scalar, losses written to it so far


def skip_bad_steps(
    optimizer: optax.GradientTransformation, loss_spike_sigma: float
) -> optax.GradientTransformationExtraArgs:
    """Returns `optimizer`, whose bad updates are zero and leave its state as it was.

    A spike is a loss beyond mean + `loss_spike_sigma` standard deviations of the last WINDOW losses
    (the rule of OLMo 2, OLMo et al. 2024); 0: none is. It enters the window as that bound, so one
    spike does not hide the next, and a level that has risen for good is accepted in the end.

    `update` takes `loss`, the loss of the whole update, besides the arguments of `optimizer`.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> SkipState:
        return SkipState(
            inner_state=optimizer.init(params),
            skipped=jnp.zeros((), jnp.int32),
            in_a_row=jnp.zeros((), jnp.int32),
            grad_norm=jnp.zeros((), jnp.float32),
            losses_W=jnp.zeros(WINDOW, jnp.float32),
            n_losses=jnp.zeros((), jnp.int32),
        )

    def update(
        grads: Any, state: SkipState, params: Any = None, *, loss: Array, **extra: Any
    ) -> tuple[Any, SkipState]:
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        limit = _spike_limit(state, loss_spike_sigma)
        ok = finite & (loss <= limit)
        updates, inner_state = optimizer.update(grads, state.inner_state, params, **extra)
        # Adding -0.0 changes no bit; adding 0.0 would turn -0.0 into 0.0.
        updates = jax.tree.map(lambda u: jnp.where(ok, u, jnp.asarray(-0.0, u.dtype)), updates)
        inner_state = jax.tree.map(lambda new, old: jnp.where(ok, new, old), inner_state, state[0])
        index = state.n_losses % WINDOW
        new_loss = jnp.where(finite, jnp.minimum(loss, limit), state.losses_W[index])
        return updates, SkipState(
            inner_state=inner_state,
            skipped=state.skipped + ~ok,
            in_a_row=jnp.where(ok, 0, state.in_a_row + 1),
            grad_norm=grad_norm,
            losses_W=state.losses_W.at[index].set(new_loss),
            n_losses=state.n_losses + finite,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _spike_limit(state: SkipState, loss_spike_sigma: float) -> Array:
    if loss_spike_sigma == 0:
        return jnp.asarray(jnp.inf)
    filled_W = jnp.arange(WINDOW) < state.n_losses
    n = jnp.maximum(jnp.minimum(state.n_losses, WINDOW), 1)
    mean = jnp.sum(state.losses_W) / n  # unfilled entries are 0
    variance = jnp.sum(jnp.where(filled_W, jnp.square(state.losses_W - mean), 0.0)) / n
    limit = mean + loss_spike_sigma * jnp.sqrt(variance)
    return jnp.where(state.n_losses >= _MIN_LOSSES, limit, jnp.inf)
