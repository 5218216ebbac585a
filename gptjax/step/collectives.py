"""What devices exchange inside `jax.shard_map`: whole parameters, sums of gradients.

A tree `axes` gives for each leaf the axis that is split over `fsdp`, or -1 (see `split_axes`). An
axis of the mesh with one device needs no exchange, and none is compiled.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from gptjax.step.sharding import AXES


def total(tree: Any, mesh: Mesh, names: tuple[str, ...] = AXES) -> Any:
    """Returns the sum of each leaf over the devices along the axes `names` of the mesh."""
    names = tuple(name for name in names if mesh.shape[name] > 1)
    return jax.lax.psum(tree, names) if names else tree


def gather(tree: Any, axes: Any) -> Any:
    """Returns a tree of shards as whole arrays, of the same dtypes."""
    return jax.tree.map(
        lambda x, a: x if a < 0 else jax.lax.all_gather(x, "fsdp", axis=a, tiled=True), tree, axes
    )


def gather_cast(tree: Any, axes: Any, dtype: str) -> Any:
    """Returns shards of float32 parameters as whole arrays, split ones in `dtype`.

    The gradient of a split one is summed over `fsdp` in float32, each device its shard; that of
    another is left unsummed.
    """
    return jax.tree.map(lambda x, a: x if a < 0 else _gather_cast(x, a, dtype), tree, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather_cast(x: Array, axis: int, dtype: str) -> Array:
    return _forward(x, axis, dtype)[0]


def _forward(x: Array, axis: int, dtype: str) -> tuple[Array, None]:
    # The primitive itself: `jax.checkpoint` goes by its name, to gather again instead of keeping.
    return jax.lax.all_gather(x.astype(dtype), "fsdp", axis=axis, tiled=True), None


def _backward(axis: int, dtype: str, _: None, gradient: Array) -> tuple[Array]:
    del dtype
    gradient = gradient.astype(jnp.float32)
    return (jax.lax.psum_scatter(gradient, "fsdp", scatter_dimension=axis, tiled=True),)


_gather_cast.defvjp(_forward, _backward)
