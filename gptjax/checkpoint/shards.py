"""What this process writes of a checkpoint: its part of each array, copied to host memory.

Each array is a folder of a header, which Orbax writes on process 0, and of files of a block of
values each. A block is of one device's shard, so each process writes whole files; what several
devices hold, each of them writes a part of.
"""

import collections
import ctypes
import dataclasses
import functools
import itertools
import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax import lax

from configs.errors import UserError
from configs.read import MIB
from gptjax.checkpoint.digests import Digests, named

_BLOCK = 8 * MIB  # bytes, about
_IN_FLIGHT = 4 * _BLOCK  # bytes that are compressed and written at a time
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)  # a leaf for JAX
class Header:
    """An array without its values."""

    name: str  # of its folder
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    block_shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Block:
    """Values in host memory, and where they belong."""

    folder: str  # item/name
    index: Index
    values: np.ndarray


@dataclasses.dataclass
class Copy:
    """This process's part of a state, which no donation changes, and digests of the whole."""

    headers: dict[str, Any]  # a tree of Header for each item
    blocks: Iterator[Block]
    digests: Callable[[], Digests]  # of item/name


def copy(items: Mapping[str, Any]) -> Copy:
    """Copies what this process is to write of the items, trees of arrays; all call this."""
    items = {item: jax.tree.map(jax.numpy.asarray, tree) for item, tree in items.items()}
    arrays = {f"{item}/{n}": x for item, tree in items.items() for n, x in named(tree).items()}
    headers = {
        item: jax.tree.unflatten(
            jax.tree.structure(tree), [_header(name, x) for name, x in named(tree).items()]
        )
        for item, tree in items.items()
    }
    if all(device.platform == "cpu" for x in arrays.values() for device in x.devices()):
        # Devices are the host: they copy, and compute the digests later, while training continues.
        arrays = {name: jax.numpy.copy(x) for name, x in arrays.items()}
        return Copy(headers, _blocks(arrays, headers), lambda: Digests(arrays))
    digests = Digests(arrays)  # while they are copied
    for x in arrays.values():
        if _n_copies(x) == 1:
            x.copy_to_host_async()
    blocks = collections.deque(_blocks(arrays, headers))
    # Each is free once it is written.
    return Copy(headers, (blocks.popleft() for _ in range(len(blocks))), lambda: digests)


def _n_copies(x: jax.Array) -> int:
    return len(x.sharding.device_set) * math.prod(x.sharding.shard_shape(x.shape)) // x.size


def _header(name: str, x: jax.Array) -> Header:
    block_shape = _block_shape(x.shape, x.sharding.shard_shape(x.shape), x.dtype.itemsize)
    return Header(name.replace("/", "."), x.shape, x.dtype, block_shape)  # as Orbax names it


def _block_shape(shape: Sequence[int], shard: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Returns a shape of about `_BLOCK` bytes, of which shards, and so files, are made up."""
    block = list(shard)
    for axis, n in enumerate(shard):
        row = itemsize * math.prod(shard[axis + 1 :])  # bytes
        most = max(1, _BLOCK // row)
        if most >= n:
            break
        if n < shape[axis]:  # blocks must end where the shard does
            divisor = max(d for d in range(1, most + 1) if n % d == 0)
            if 8 * divisor * row < _BLOCK and divisor < most:
                break  # a large file is better than thousands of tiny ones
            most = divisor
        block[axis] = most
        if most > 1:
            break
    return tuple(block)


def _blocks(arrays: dict[str, jax.Array], headers: Mapping[str, Any]) -> Iterator[Block]:
    """Yields this process's blocks of arrays, on a CPU without copying them.

    An array is taken out of the dict when its turn comes, so that it is free once it is written.
    """
    heads = [(item, head) for item, tree in headers.items() for head in jax.tree.leaves(tree)]
    for first, ((item, head), name) in enumerate(zip(heads, list(arrays), strict=True)):
        x = arrays.pop(name)
        n_copies = _n_copies(x)
        for shard in x.addressable_shards:
            in_part = n_copies > 1 and shard.device.platform != "cpu"
            whole = None if in_part else np.asarray(shard.data)
            starts = [index.start or 0 for index in shard.index]
            for number, local in enumerate(_grid(shard.data.shape, head.block_shape)):
                if (first + number) % n_copies != shard.replica_id:
                    continue
                if whole is None:
                    sizes = tuple(part.stop - part.start for part in local)
                    values = np.asarray(_slice(shard.data, [p.start for p in local], sizes))
                else:
                    values = whole[local]
                index = tuple(
                    slice(start + part.start, start + part.stop)
                    for start, part in zip(starts, local, strict=True)
                )
                yield Block(f"{item}/{head.name}", index, values)


@functools.partial(jax.jit, static_argnums=2)
def _slice(x: jax.Array, starts: list[Any], sizes: tuple[int, ...]) -> jax.Array:
    return lax.dynamic_slice(x, starts, sizes)


def _grid(shape: Sequence[int], block_shape: Sequence[int]) -> Iterator[Index]:
    """Yields the indices of the blocks of an array, in C order."""
    axes = [
        [slice(i, min(i + step, n)) for i in range(0, n, step)]
        for n, step in zip(shape, block_shape, strict=True)
    ]
    return itertools.product(*axes)


def write(folder: Path, blocks: Iterator[Block]) -> None:
    """Writes blocks to a checkpoint that has the headers.

    Each file is on the disk when this returns or raises. Raises UserError if this process does not
    see the folder, and any Exception of TensorStore.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not there: all processes need the same file system")
    context = ts.Context({"file_io_sync": True})
    stores: dict[str, Any] = {}
    writing: collections.deque[tuple[int, Any]] = collections.deque()
    try:
        for block in blocks:
            if block.folder not in stores:
                spec = {**_spec(folder / block.folder), "store_data_equal_to_fill_value": True}
                stores[block.folder] = ts.open(spec, context=context, open=True).result()
            future = stores[block.folder][block.index].write(
                block.values, can_reference_source_data_indefinitely=True
            )
            writing.append((block.values.nbytes, future))
            while sum(n for n, _ in writing) > _IN_FLIGHT:
                writing.popleft()[1].result()
                _release()
        while writing:
            writing.popleft()[1].result()
    finally:  # after an error: nothing is written later
        for _, future in writing:
            future.exception()


def _release() -> None:
    """Returns freed memory to the system, of which glibc keeps as much as a checkpoint has."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def open_array(folder: Path, name: str) -> Any:
    """Returns a future of the TensorStore of an array, to read from; `folder` is of its item."""
    spec = {**_spec(folder.absolute() / name.replace("/", ".")), "fill_missing_data_reads": False}
    return ts.open(spec, open=True, read=True)


def _spec(path: Path) -> dict[str, Any]:
    return {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}/"}}


def read(store: Any) -> np.ndarray:
    """Returns the values of a TensorStore, in memory that goes back to the system when it is freed.

    Of what malloc gets back, a size that it gave often, it keeps some.
    """
    dtype = store.dtype.numpy_dtype
    memory = mmap.mmap(-1, max(1, dtype.itemsize * store.size))
    values = np.frombuffer(memory, dtype, store.size).reshape(store.shape)
    ts.array(values).write(store[ts.d[:].translate_to[0]]).result()
    return values


class HeaderHandler(ocp.type_handlers.TypeHandler):
    """How Orbax saves a Header.

    It is said to be of a NumPy array, for readers of such a one need not name devices.
    """

    def typestr(self) -> str:
        """As in Orbax's interface."""
        return "np.ndarray"

    async def serialize(
        self, values: Sequence[Header], infos: Sequence[Any], args: Any = None
    ) -> list[Any]:
        """As in Orbax's interface."""
        future = ocp.future.CommitFutureAwaitingContractedSignals
        return [future(self._create(values, infos), name="headers")]

    async def _create(self, values: Sequence[Header], infos: Sequence[Any]) -> None:
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            assert info.name == value.name, (info.name, value.name)
            metadata = {
                "shape": value.shape,
                "chunks": value.block_shape,
                "compressor": {"id": "zstd", "level": 1},  # as Orbax has it
            }
            path = Path(info.parent_dir) / info.name
            spec = {**_spec(path), "dtype": value.dtype.name, "metadata": metadata}
            await ts.open(spec, create=True)

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        """Is not called: other handlers read."""
        raise NotImplementedError

    async def deserialize(self, infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        """Is not called: other handlers read."""
        raise NotImplementedError
