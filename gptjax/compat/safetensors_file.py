"""Tensors of a safetensors file: its header is checked, and only what is asked for is read.

The file is the size of the header (8 bytes), the header (JSON: by name dtype, shape and place) and
the tensors.
"""

import collections
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from configs.errors import UserError
from configs.read import MIB, mismatch, os_reason, parse_json, read_json
from data_pipeline.files import new_files
from gptjax.compat.progress import one_by_one

_MAX_HEADER = 16 * MIB  # bytes: 100,000 tensors
_SCHEMA = {str: {"dtype": str, "shape": [int], "data_offsets": [int, int]}}
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def open_folder(folder: Path) -> Mapping[str, np.ndarray]:
    """Returns the tensors of model.safetensors, or of the files that its index lists.

    Raises:
        UserError: a file is missing or damaged.
    """
    path, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if path.exists() or not index.exists():
        if not path.exists():
            raise UserError(f"{path} is missing. (Other formats run code when read: convert them.)")
        return SafeTensors(path)
    names = sorted(
        {*read_json(index, _MAX_HEADER, {"weight_map": {str: str}})["weight_map"].values()}
    )
    if strange := [name for name in names if os.path.basename(name) != name]:
        raise UserError(f"{index}: the file name {strange[0]!r} leads out of its folder.")
    return collections.ChainMap(*(SafeTensors(folder / name) for name in names))  # type: ignore[arg-type]


def write(path: Path, tensors: Mapping[str, np.ndarray], dtype: str) -> None:
    """Writes a new file of float32 tensors as `dtype`, each rounded when it is its turn."""
    to, end = jnp.dtype(dtype), 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    (code,) = (code for code, name in _DTYPES.items() if name == dtype)
    for name, tensor in tensors.items():
        start, end = end, end + tensor.size * to.itemsize
        header[name] = {"dtype": code, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    with new_files([path]) as files:
        f = files[path.name]
        f.write(len(text).to_bytes(8, "little") + text)
        for tensor in one_by_one(tensors):
            f.write(np.ascontiguousarray(tensor, to).view(np.uint8).data)


class SafeTensors(Mapping[str, np.ndarray]):
    """Arrays by name, mapped from the file; UserError for one that cannot be read."""

    def __init__(self, path: Path) -> None:
        """Reads the header.

        Raises:
            UserError: it is damaged, or there is no such file.
        """
        self._path = path
        try:
            status = path.stat()
            size = status.st_size
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is no regular file")
            with path.open("rb") as f:
                n = int.from_bytes(f.read(8), "little")
                if n > min(_MAX_HEADER, size - 8):
                    raise ValueError(f"its header claims {n:,} bytes")
                self._header = parse_json(f.read(n))
            if isinstance(self._header, dict):
                self._header.pop("__metadata__", None)
            if problem := mismatch(self._header, _SCHEMA):
                raise ValueError(f"in its header, {problem}")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is damaged ({os_reason(error)}): download it again."
            ) from error
        self._start, self._size = 8 + n, size - 8 - n

    def __getitem__(self, name: str) -> np.ndarray:
        record = self._header[name]
        shape, (start, end) = record["shape"], record["data_offsets"]
        if record["dtype"] not in _DTYPES:
            raise UserError(
                f"{self._path}: {name} has the dtype {record['dtype']}, and {', '.join(_DTYPES)} "
                "are read: convert the model."
            )
        dtype = jnp.dtype(_DTYPES[record["dtype"]])
        n_bytes = dtype.itemsize * math.prod(shape)
        if (
            min(shape, default=0) < 0
            or not 0 <= start <= end <= self._size
            or end - start != n_bytes
        ):
            raise UserError(
                f"{self._path} is damaged ({name} lies outside, or has another size than its "
                "shape): download it again."
            )
        if not n_bytes:
            return np.zeros(shape, dtype)
        bytes_ = np.memmap(self._path, np.uint8, "r", self._start + start, n_bytes)
        return np.asarray(bytes_).view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)
