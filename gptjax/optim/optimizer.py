"""AdamW and Muon, clipping, skipping of bad steps, and accumulation by `optax.MultiSteps`."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import Array
from ml_collections import ConfigDict

from gptjax.optim.muon import muon
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


class Optimizer:
    """AdamW or Muon with clipping and skipping, over one micro-step a step or several."""

    def __init__(
        self,
        optim: ConfigDict,
        micro_steps: int,
        max_iters: int,
        *,
        loss_spike_sigma: float = 0.0,
        compute_dtype: str = "float32",
        spread: Callable[[Array], Array] = lambda kernel: kernel,
    ):
        """Schedules depend on updates, not micro-steps, and on their number `max_iters`.

        `compute_dtype` and `spread` are Muon's: see `muon`.
        """
        optimizer = skip_bad_steps(
            _transformation(optim, max_iters, compute_dtype, spread), loss_spike_sigma
        )
        # At each call MultiSteps computes what it wraps, and discards the result of all but the
        # last. Here each micro-step makes a call that wraps nothing, and the update is one call
        # more, whose gradient is the mean so far, to which it adds (mean - mean) / n = 0.
        n_calls = micro_steps + 1
        self._accumulating = optax.MultiSteps(optax.identity(), n_calls)
        self._micro_steps = micro_steps
        self._updating = optimizer if micro_steps == 1 else optax.MultiSteps(optimizer, n_calls)

    def init(self, params: Any) -> Any:
        """Returns the state before the first step."""
        return self._updating.init(params)

    def accumulator(self, zeros: Any) -> optax.MultiStepsState:
        """Returns the start of a float32 mean of gradients over several micro-steps."""
        return self._accumulating.init(zeros)._replace(acc_grads=zeros)

    def accumulate(self, grads: Any, accumulator: optax.MultiStepsState) -> optax.MultiStepsState:
        """Returns the accumulator with the gradient of one micro-step in its `acc_grads`."""
        return self._accumulating.update(grads, accumulator)[1]

    def update(self, params: Any, state: Any, grads: Any, *, loss: Array) -> tuple[Any, Any]:
        """Returns (params, state) after an update from `grads`, the mean over the micro-steps.

        `loss` is that of the whole step: see `skip_bad_steps`.
        """
        if isinstance(state, optax.MultiStepsState):
            mini_step = state.mini_step + self._micro_steps
            state = state._replace(mini_step=mini_step, acc_grads=grads)
        updates, state = self._updating.update(grads, state, params, loss=loss)
        return optax.apply_updates(params, updates), state


def adamw(optim: ConfigDict, max_iters: int) -> optax.GradientTransformation:
    """Returns AdamW, which moves an untied head at a rate of its own (optim.head_learning_rate)."""
    optimizer = optax.adamw(
        learning_rate_schedule(optim, max_iters),
        b1=optim.beta1,
        b2=optim.beta2,
        eps=optim.eps,
        weight_decay=weight_decay(optim, max_iters),
        mask=decay_mask,
    )
    if not optim.head_learning_rate:
        return optimizer
    factor = optim.head_learning_rate / optim.learning_rate  # of the whole update: the decay, too

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return jax.tree_util.tree_map_with_path(scale, updates), state

    def scale(path: tuple[Any, ...], leaf: Array) -> Array:
        return factor * leaf if path[-1].key == "lm_head" else leaf

    return optax.GradientTransformation(optimizer.init, update)


def _transformation(
    optim: ConfigDict, max_iters: int, compute_dtype: str, spread: Callable[[Array], Array]
) -> optax.GradientTransformation:
    optimizer = adamw(optim, max_iters)
    if optim.optimizer == "muon":
        hidden = muon(
            muon_learning_rate_schedule(optim, max_iters),
            momentum=optim.muon_momentum,
            weight_decay=weight_decay(optim, max_iters),
            scale=optim.muon_scale,
            compute_dtype=compute_dtype,
            spread=spread,
        )
        optimizer = optax.partition({"muon": hidden, "adamw": optimizer}, param_labels)
    clip = optax.clip_by_global_norm(optim.grad_clip) if optim.grad_clip else optax.identity()
    return optax.chain(clip, optimizer)
