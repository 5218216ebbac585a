"""Digests of arrays, which prove that what is read is what was saved.

A digest is computed on the devices that hold the array, and does not depend on how it is split over
devices and processes: each element is mixed with its place in the whole array, and the results are
added modulo 2^32, twice with different mixes, to 64 bits. It notices every accident to bits and
order, but is no defence against somebody who wants two arrays of the same digest.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Records = dict[str, dict[str, Any]]  # JSON: by the array's name its dtype, shape and digest
# Returns the texts that all processes give which hold parts of the same arrays; else this one's.
Exchange = Callable[[str], list[str]]

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}  # by the bytes of an element


def named(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, such as `blocks/attn/c_attn/kernel`.

    Attributes and keys look the same, so a tree and its image in dicts and lists have equal names.
    """
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}


def n_bytes(records: Records) -> int:
    """Returns the size of the arrays that the records describe.

    Raises TypeError for an unknown dtype; ValueError for one that has no digest and for a negative
    length.
    """
    for name, record in records.items():
        dtype = jnp.dtype(record["dtype"])
        if min(record["shape"], default=0) < 0:
            raise ValueError(f"{name} has the shape {record['shape']}")
        if dtype.itemsize not in _BITS or jnp.issubdtype(dtype, np.complexfloating):
            raise ValueError(f"{name} has the dtype {dtype}, which is in no state")
    return sum(math.prod(r["shape"]) * jnp.dtype(r["dtype"]).itemsize for r in records.values())


def unlike(arrays: Mapping[str, Any], expected: Records) -> list[str]:
    """Returns a phrase for each name that is missing or unexpected."""
    problems = [f"{name} is missing" for name in expected if name not in arrays]
    return problems + [f"{name} is unexpected" for name in arrays if name not in expected]


def damage(records: Records, expected: Records) -> list[str]:
    """Returns a phrase for each array that is missing, unexpected or not as recorded."""
    problems = unlike(records, expected)
    for name, record in records.items():
        old = expected.get(name, record)
        if changed := [key for key in record if record[key] != old[key]]:
            key = changed[0]
            problems.append(f"{name}: {key} {record[key]}, saved with {old[key]}")
    return problems


class Digests:
    """The digests of arrays, which their devices compute while this process continues."""

    def __init__(self, arrays: Mapping[str, jax.Array]):
        """Starts the computation on each shard; the arrays may be donated afterwards."""
        # All shards of one `replica_id` are a copy of the array.
        self._described = {n: (str(x.dtype), list(x.shape)) for n, x in arrays.items()}
        self._parts: dict[str, list[tuple[int, Any]]] = {
            name: [(s.replica_id, _shard_sums(s, x.shape)) for s in x.addressable_shards]
            for name, x in arrays.items()
        }

    def result(self, exchange: Exchange) -> tuple[Records, list[str]]:
        """Returns (the records, the names of the arrays that are not finite), once computed.

        Where copies of an array differ, its digest is "differs".
        """
        mine = {
            name: [[copy, *(int(part) for part in parts)] for copy, parts in shards]
            for name, shards in self._parts.items()
        }
        totals: dict[str, dict[int, list[int]]] = {name: {} for name in mine}
        for text in exchange(json.dumps(mine)):
            for name, shards in json.loads(text).items():
                for copy, *parts in shards:
                    sums = totals[name].setdefault(copy, [0, 0, 0])
                    sums[:] = [(a + b) % 2**32 for a, b in zip(sums, parts, strict=True)]
        records = {
            name: {"dtype": dtype, "shape": shape, "digest": _digest(totals[name])}
            for name, (dtype, shape) in self._described.items()
        }
        bad = [name for name, copies in totals.items() if any(n for *_, n in copies.values())]
        return records, bad


def _digest(copies: Mapping[int, list[int]]) -> str:
    texts = {f"{a:08x}{b:08x}" for a, b, _ in copies.values()}
    return texts.pop() if len(texts) == 1 else "differs"


def _shard_sums(shard: Any, shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Starts to compute (sum, other sum, 1 if a value is not finite else 0) of a shard.

    `shape` is that of the whole array.
    """
    strides = [math.prod(shape[axis + 1 :]) % 2**32 for axis in range(len(shape))]
    starts = [index.start or 0 for index in shard.index]
    first = sum(start * stride for start, stride in zip(starts, strides, strict=True)) % 2**32
    return _sums(shard.data, np.uint32(first), tuple(strides))


@functools.partial(jax.jit, static_argnames="strides")
def _sums(x: jax.Array, first: jax.Array, strides: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Returns the sums of `x`, whose first element is number `first` of the whole array.

    One reduction of three operands, which XLA fuses with what computes them: it takes no memory.
    """
    bits = x if x.dtype == bool else lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize])
    bits = bits.astype(jnp.uint32)
    place = jnp.full(x.shape, first)
    for axis, stride in enumerate(strides):
        place += lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride)
    one = _mix(bits ^ _mix(place))
    other = _mix(bits + _mix(place ^ np.uint32(0x9E3779B9)))
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    bad = (~jnp.isfinite(x) if floats else jnp.zeros(x.shape, bool)).astype(jnp.uint32)

    def add(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return a[0] + b[0], a[1] + b[1], a[2] | b[2]

    zero = np.uint32(0)
    sums: tuple[jax.Array, ...] = lax.reduce(
        (one, other, bad), (zero, zero, zero), add, tuple(range(x.ndim))
    )
    return sums


def _mix(h: jax.Array) -> jax.Array:
    """Returns each uint32 mixed: any bit changes half of all (lowbias32 of C. Wellons)."""
    h = (h ^ (h >> 16)) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    return h ^ (h >> 16)
