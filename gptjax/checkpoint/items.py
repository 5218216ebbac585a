"""The items of a checkpoint: arrays in files of Orbax, which are checked before they are read."""

import math
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from configs.errors import DataError, UserError
from configs.read import MIB, read_json
from gptjax.checkpoint import digests, shards
from gptjax.checkpoint.shards import Header, HeaderHandler
from gptjax.common.host_memory import available_host_bytes

MAX_JSON = 16 * MIB  # bytes: the sources of a store and their hashes
_MAX_HEADER = 1 << 16  # bytes of the header of an array
_WRITERS = ocp.type_handlers.create_type_handler_registry(
    (Header, HeaderHandler()),
    (jax.Array, ocp.type_handlers.ArrayHandler()),  # Orbax warns where it misses one
)


class Damaged(Exception):
    """A checkpoint is not what was saved; the message says how it differs."""


def check(folder: Path, meta: Mapping[str, Any], items: Iterable[str] | None = None) -> None:
    """Raises Damaged if the files of some items, None for all, are not what `meta` says of them.

    Their values are not read: see `compare`.
    """
    for item in meta["arrays"] if items is None else items:
        _check(folder, item, meta["arrays"][item])


def load(folder: Path, meta: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns trees of arrays by item, on the shardings of `shapes`: of what has passed `check`.

    A process reads what its devices hold. Raises Damaged if that fails, and UserError if there is
    too little memory.
    """
    _require_memory(sum(_local_bytes(x) for x in jax.tree.leaves(shapes)), folder)
    trees = {}
    for item, tree in shapes.items():
        shardings = {name: x.sharding for name, x in digests.named(tree).items()}
        arrays = _read(folder, item, meta["arrays"][item], shardings)
        leaves = [arrays[name] for name in shardings]
        trees[item] = jax.tree.unflatten(jax.tree.structure(tree), leaves)
    return trees


def _local_bytes(x: jax.ShapeDtypeStruct) -> int:
    """Returns the bytes that this process reads of an array."""
    parts = len(x.sharding.addressable_devices) * math.prod(x.sharding.shard_shape(x.shape))
    return x.dtype.itemsize * min(parts, math.prod(x.shape))


def compare(trees: Mapping[str, Any], meta: Mapping[str, Any], exchange: digests.Exchange) -> None:
    """Raises Damaged, on all processes that share the arrays, if they are not what was saved."""
    arrays: dict[str, jax.Array] = {}
    expected: digests.Records = {}
    for item, tree in trees.items():
        arrays |= {f"{item}/{name}": x for name, x in digests.named(tree).items()}
        expected |= {f"{item}/{name}": r for name, r in meta["arrays"][item].items()}
    records, _ = digests.Digests(arrays).result(exchange)
    if problems := digests.damage(records, expected):
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise Damaged("; ".join(problems[:3]) + more)


def _require_memory(n_bytes: int, folder: Path) -> None:
    if n_bytes > (available := available_host_bytes()):
        raise UserError(
            f"{folder} holds {n_bytes / 1e9:.1f} GB of arrays, and this machine has "
            f"{available / 1e9:.1f} GB of free memory."
        )


def _check(folder: Path, item: str, records: digests.Records) -> None:
    """Raises Damaged if the files of an item are not those of its records, by size and header.

    Nothing is allocated: a size that tensorstore believes and cannot allocate ends the process.
    """
    path = (folder / item).absolute()
    if not path.is_dir():
        raise Damaged(f"its folder {item} is missing")
    largest = digests.n_bytes(records) + MAX_JSON
    for file in path.rglob("*"):
        status = file.lstat()
        is_usual = stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)  # no link, no pipe
        if not is_usual or status.st_size > largest:
            raise Damaged(f"{item}/{file.relative_to(path)} is no file of it")
        if file.name == ".zarray":  # tensorstore's own parser overflows the stack
            try:
                read_json(file, _MAX_HEADER)
            except DataError as error:
                raise Damaged(str(error)) from error
    try:
        _check_headers(digests.named(_handler().metadata(path).tree), records, item)
    except (MemoryError, Damaged):
        raise
    except Exception as error:  # Orbax raises nearly every kind, the bare one included
        raise Damaged(summary(error)) from error


def _read(
    folder: Path, item: str, records: digests.Records, shardings: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Returns the arrays of an item, which has passed `check`, on shardings by their names."""
    opening = {name: shards.open_array(folder / item, name) for name in shardings}
    arrays = {}
    try:
        for name, sharding in shardings.items():
            store = opening[name].result()
            # Not believed to be what Orbax has found.
            chunks = store.chunk_layout.read_chunk.shape or ()
            header = (store.dtype.name, store.shape, chunks)
            _check_header(f"{item}/{name}", *header, records[name])
            arrays[name] = _place(store, sharding)
    except (MemoryError, Damaged):
        raise
    except Exception as error:
        raise Damaged(f"{item}/{name}: {summary(error)}") from error
    return arrays


def _place(store: Any, sharding: Any) -> jax.Array:
    """Reads what the devices of this process hold of an array."""
    parts: dict[str, np.ndarray] = {}  # several devices can have the same
    on_devices = []
    for device, index in sharding.addressable_devices_indices_map(store.shape).items():
        if str(index) not in parts:
            parts[str(index)] = shards.read(store[index])
        # A step cannot reuse memory that is not JAX's own.
        on_devices.append(jax.device_put(parts[str(index)], device, may_alias=False))
    return jax.make_array_from_single_device_arrays(store.shape, sharding, on_devices)


def _check_headers(headers: Mapping[str, Any], records: digests.Records, item: str) -> None:
    if problems := digests.unlike(headers, records):
        raise Damaged("; ".join(f"{item}/{text}" for text in problems[:3]))
    for name, header in headers.items():
        storage = getattr(header, "storage", None)
        if storage is None or storage.chunk_shape is None:  # a scalar: its header is not read
            raise Damaged(f"{item}/{name} is not an array")
        values = (str(header.dtype), header.shape, storage.chunk_shape)
        _check_header(f"{item}/{name}", *values, records[name])


def _check_header(
    name: str, dtype: str, shape: Sequence[int], chunks: Sequence[int], record: dict[str, Any]
) -> None:
    if [dtype, *shape] != [record["dtype"], *record["shape"]]:
        raise Damaged(
            f"{name} is {dtype}{list(shape)}, saved as {record['dtype']}{record['shape']}"
        )
    if any(c > max(1, n) for c, n in zip(chunks, shape, strict=True)):
        raise Damaged(f"{name} has chunks {list(chunks)} of {list(shape)}")


def summary(error: BaseException) -> str:
    """Returns kind and first line of an error: some libraries write pages."""
    lines = str(error).partition(" [tensorstore_spec=")[0].splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def open_checkpointer(items: Iterable[str]) -> ocp.Checkpointer:
    """Returns a checkpointer for items of headers and for `meta`, of this process alone."""
    alone = _alone()
    handlers = {
        name: ocp.JsonCheckpointHandler(multiprocessing_options=alone)
        if name == "meta"
        else _handler(type_handler_registry=_WRITERS)
        for name in items
    }
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone), **handlers
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _handler(**options: Any) -> ocp.PyTreeCheckpointHandler:
    """Returns the handler of a tree of arrays.

    Each array becomes a folder. Orbax's default, OCDBT, has fewer files but leaks some 50 KB of
    memory with each save (tensorstore 0.1.86).
    """
    return ocp.PyTreeCheckpointHandler(use_ocdbt=False, multiprocessing_options=_alone(), **options)


def _alone() -> ocp.options.MultiprocessingOptions:
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
    )
