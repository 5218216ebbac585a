"""Skips updates that would do harm: of a loss or gradient that is not finite, or a loss spike.

The guard wraps an optimizer and decides once an update, also where `optax.MultiSteps` accumulates
gradients around it: the mean of gradients is finite only if each of them is. What it counts is part
of the optimizer's state, so a run that goes on skips what an unbroken one skips.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

WINDOW = 128  # losses that a spike is measured against
_FEWEST = WINDOW // 2  # with fewer, nothing is a spike


class GuardState(NamedTuple):
    """The wrapped optimizer's state, and what was skipped."""

    inner_state: Any
    skipped: Array  # int32 scalar, updates skipped so far
    in_a_row: Array  # int32 scalar, of these, since the last update that was made
    grad_norm: Array  # float32 scalar, global L2 norm of the last gradient, skipped or not
    losses_W: Array  # float32, the last WINDOW losses, in a ring
    n_losses: Array  # int32 scalar, losses that have been put into it


def guard(
    optimizer: optax.GradientTransformation, loss_spike_sigma: float
) -> optax.GradientTransformationExtraArgs:
    """Returns `optimizer`, whose updates are zero and whose state stays where numbers go wrong.

    A spike is a loss beyond mean + `loss_spike_sigma` standard deviations of the last WINDOW losses
    (the rule of OLMo 2, OLMo et al. 2024); 0: none is. A spike enters the window as that bound, so
    that one does not blind the guard, and a level that has risen for good is accepted in the end.

    `update` takes `loss`, the loss of the whole update, besides the arguments of `optimizer`.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> GuardState:
        return GuardState(
            inner_state=optimizer.init(params),
            skipped=jnp.zeros((), jnp.int32),
            in_a_row=jnp.zeros((), jnp.int32),
            grad_norm=jnp.zeros((), jnp.float32),
            losses_W=jnp.zeros(WINDOW, jnp.float32),
            n_losses=jnp.zeros((), jnp.int32),
        )

    def update(
        grads: Any, state: GuardState, params: Any = None, *, loss: Array, **extra: Any
    ) -> tuple[Any, GuardState]:
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        limit = _spike_limit(state, loss_spike_sigma)
        ok = finite & (loss <= limit)
        updates, inner_state = optimizer.update(grads, state.inner_state, params, **extra)
        # Adding -0.0 changes no bit; adding 0.0 would turn -0.0 into 0.0.
        updates = jax.tree.map(lambda u: jnp.where(ok, u, jnp.asarray(-0.0, u.dtype)), updates)
        inner_state = jax.tree.map(lambda new, old: jnp.where(ok, new, old), inner_state, state[0])
        index = state.n_losses % WINDOW
        entered = jnp.where(finite, jnp.minimum(loss, limit), state.losses_W[index])
        return updates, GuardState(
            inner_state=inner_state,
            skipped=state.skipped + ~ok,
            in_a_row=jnp.where(ok, 0, state.in_a_row + 1),
            grad_norm=grad_norm,
            losses_W=state.losses_W.at[index].set(entered),
            n_losses=state.n_losses + finite,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _spike_limit(state: GuardState, loss_spike_sigma: float) -> Array:
    if loss_spike_sigma == 0:
        return jnp.asarray(jnp.inf)
    held = jnp.arange(WINDOW) < state.n_losses
    n = jnp.maximum(jnp.minimum(state.n_losses, WINDOW), 1)
    mean = jnp.sum(state.losses_W) / n  # places not filled yet hold 0
    variance = jnp.sum(jnp.where(held, jnp.square(state.losses_W - mean), 0.0)) / n
    limit = mean + loss_spike_sigma * jnp.sqrt(variance)
    return jnp.where(state.n_losses >= _FEWEST, limit, jnp.inf)
