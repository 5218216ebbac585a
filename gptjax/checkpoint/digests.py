"""SHA-256 digests of arrays, which prove that what is read is what was saved.

A digest covers the whole array in C order, so it does not depend on devices and processes. These
functions compute in threads and release the interpreter.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")

_CHUNK = 1 << 18  # values tested for finiteness at a time, to save memory

Records = dict[str, dict[str, Any]]  # JSON: by the array's name its dtype, shape and sha256


def named(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, such as `blocks/attn/c_attn/kernel`.

    Attributes and keys look the same, so a tree and its image in dicts and lists have equal names.
    """
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}


def _in_threads(function: Callable[[Any], T], arrays: Mapping[str, np.ndarray]) -> dict[str, T]:
    with ThreadPoolExecutor() as pool:
        return dict(zip(arrays, pool.map(function, arrays.values()), strict=True))


def records(arrays: Mapping[str, np.ndarray]) -> Records:
    """Returns dtype, shape and digest of each array."""
    return _in_threads(_record, arrays)


def _record(array: np.ndarray) -> dict[str, Any]:
    flat = np.ascontiguousarray(array).reshape(-1)
    return {
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        # as bytes: Python's buffers do not know bfloat16
        "sha256": hashlib.sha256(flat.view(np.uint8).data).hexdigest(),
    }


def n_bytes(records: Records) -> int:
    """Returns the size of the arrays that the records describe.

    Raises TypeError for an unknown dtype, ValueError for a negative length.
    """
    if bad := [name for name, r in records.items() if min(r["shape"], default=0) < 0]:
        raise ValueError(f"{bad[0]} has the shape {records[bad[0]]['shape']}")
    return sum(math.prod(r["shape"]) * jnp.dtype(r["dtype"]).itemsize for r in records.values())


def unlike(arrays: Mapping[str, Any], expected: Records) -> list[str]:
    """Returns a phrase for each name that is missing or unexpected."""
    problems = [f"{name} is missing" for name in expected if name not in arrays]
    return problems + [f"{name} is unexpected" for name in arrays if name not in expected]


def damage(arrays: Mapping[str, np.ndarray], expected: Records) -> list[str]:
    """Returns a phrase for each array that is missing, unexpected or not as recorded."""
    problems = unlike(arrays, expected)
    for name, record in records({n: a for n, a in arrays.items() if n in expected}).items():
        if changed := [key for key in record if record[key] != expected[name][key]]:
            key = changed[0]
            problems.append(f"{name}: {key} {record[key]}, saved with {expected[name][key]}")
    return problems


def not_finite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the names of the arrays that hold an infinity or NaN."""
    floats = {n: a for n, a in arrays.items() if jax.dtypes.issubdtype(a.dtype, np.inexact)}
    return [name for name, finite in _in_threads(_finite, floats).items() if not finite]


def _finite(array: np.ndarray) -> bool:
    flat = array.reshape(-1)
    chunks = range(0, flat.size, _CHUNK)
    return all(bool(np.isfinite(flat[i : i + _CHUNK]).all()) for i in chunks)
