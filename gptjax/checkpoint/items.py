"""One item of a checkpoint: arrays in files of Orbax, which are checked before they are read."""

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from configs.errors import DataError
from configs.read import MIB, read_json
from gptjax.checkpoint import digests

MAX_JSON = 16 * MIB  # bytes: the sources of a store and their hashes
_MAX_HEADER = 1 << 16  # bytes of the header of an array


class Damaged(Exception):
    """A checkpoint is not what was saved; the message says how it differs."""


def read(folder: Path, item: str, records: digests.Records) -> dict[str, np.ndarray]:
    """Returns the arrays of an item, whose files must not claim more than the records do.

    A size that tensorstore believes and cannot allocate ends the process.
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
    handler = _handler()
    try:
        headers = handler.metadata(path).tree
        _check_headers(digests.named(headers), records, item)
        # As NumPy's, whatever kind of array the files name.
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), headers)
        return digests.named(handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=kinds)))
    except (MemoryError, Damaged):
        raise
    except Exception as error:  # Orbax raises nearly every kind, the bare one included
        raise Damaged(summary(error)) from error


def _check_headers(headers: Mapping[str, Any], records: digests.Records, item: str) -> None:
    if problems := digests.unlike(headers, records):
        raise Damaged("; ".join(f"{item}/{text}" for text in problems[:3]))
    for name, header in headers.items():
        storage, shape = getattr(header, "storage", None), records[name]["shape"]
        if storage is None or storage.chunk_shape is None:  # a scalar: its header is not read
            raise Damaged(f"{item}/{name} is not an array")
        if [str(header.dtype), *header.shape] != [records[name]["dtype"], *shape]:
            raise Damaged(
                f"{item}/{name} is {header.dtype}{list(header.shape)}, saved as "
                f"{records[name]['dtype']}{shape}"
            )
        if any(c > max(1, n) for c, n in zip(storage.chunk_shape, shape, strict=True)):
            raise Damaged(f"{item}/{name} has chunks {storage.chunk_shape} of {shape}")


def summary(error: BaseException) -> str:
    """Returns kind and first line of an error: some libraries write pages."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def open_checkpointer(items: Iterable[str]) -> ocp.Checkpointer:
    """Returns a checkpointer for these items, of this process alone."""
    alone = _alone()
    handlers = {
        name: ocp.JsonCheckpointHandler(multiprocessing_options=alone)
        if name == "meta"
        else _handler()
        for name in items
    }
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone), **handlers
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _handler() -> ocp.PyTreeCheckpointHandler:
    """Returns the handler of a tree of arrays.

    Each array becomes a folder. Orbax's default, OCDBT, has fewer files but leaks some 50 KB of
    memory with each save (tensorstore 0.1.86). Both are read.
    """
    return ocp.PyTreeCheckpointHandler(use_ocdbt=False, multiprocessing_options=_alone())


def _alone() -> ocp.options.MultiprocessingOptions:
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
    )
