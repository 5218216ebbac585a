"""The token store on disk: a folder of flat token files with document lengths.

    manifest.json          sources, settings, counts, sha256 of each file and its own; written last
    tokenizer.model
    00000-train.tokens     <u2, or <u4 where the vocabulary exceeds 65,536: BOS, tokens of a
                           document, BOS, tokens of the next, ...
    00000-train.lengths    <i4: tokens of each document, BOS included
    00000-train.rows       <u4: row of each document in its source file
    00000-val.*            the same; 00001-* where there are several files

Each source file becomes one shard of the store, which data_pipeline.encode writes. The manifest
lists the shards under the key "pieces", which stays: another name would be another format.
"""

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from configs.errors import DataError
from configs.mixture import Mixture
from configs.read import MIB, mismatch, read_json
from data_pipeline import mirror
from data_pipeline.files import hash_json, write_atomically
from data_pipeline.split import Present, Split, shard_name, unusable
from data_pipeline.token_ids import token_dtype
from data_pipeline.tokenizer import Tokenizer

FORMAT = 2  # raise it when files or their meaning change: older stores are then prepared again
SPLITS = ("train", "val")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"  # a SentencePiece model, or a byte-level tokenizer.json
KINDS = ("tokens", "lengths", "rows")  # of files of a split of a shard
_KEYS = frozenset(  # of a manifest
    """
    format sources settings tokenizer published splits usable_documents exact_duplicates skipped
    damaged pieces files
    """.split()
)
_DIGEST = "sha256"  # key of the manifest's own digest, which older ones lack
_BUFFER = 1 << 20  # bytes read at a time
_MAX_MANIFEST = 64 * MIB  # bytes: 30,000 sources
_COUNTS = dict.fromkeys(("documents", "tokens", "bytes"), int)
_SPLIT = {
    **_COUNTS,
    "bytes_per_token": float,
    "gpt2_tokens": (int, None),
    "length_percentiles": {str: int},
}
_DAMAGE = {"file": str, "reason": str, "documents_kept": int, "documents_lost": int}
_SCHEMA = {
    "sources": [{"file": str, "documents": int, "size_bytes": int}],
    "settings": dict,
    "tokenizer": {"hash": str, "vocab_size": int},
    "splits": dict.fromkeys(SPLITS, _SPLIT),
    "pieces": [{"source": str, "content_sha256": str, **dict.fromkeys(SPLITS, _COUNTS)}],
    "damaged": [({"place": str, **_DAMAGE}, {"row_group": int, "column": str, **_DAMAGE})],
    "skipped": {str: int},
    "exact_duplicates": int,
    "files": {str: {"size_bytes": int, "sha256": str}},
}


class Stores(Protocol):
    """What a run reads: one `TokenStore`, or one for each source of a mixture."""

    @property
    def sources(self) -> Mapping[str, "TokenStore"]:
        """The stores by the names of their sources; the only one has no name."""

    @property
    def mixture(self) -> Mixture | None:
        """How the sources are mixed; None for a single one."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all."""

    @property
    def hash(self) -> str:
        """Distinguishes the contents."""

    @property
    def identity(self) -> dict[str, Any]:
        """What `hash` stands for, as JSON for `files.differences`."""


class TokenStore:
    """A complete store, opened for reading; see `Stores`."""

    mixture = None

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Use `open`."""
        self.path = path
        self.manifest = manifest
        # All that distinguishes stores, as JSON for `files.differences`.
        self.identity: dict[str, Any] = {
            **{key: manifest[key] for key in ("format", "sources", "settings", "tokenizer")},
            "content": [shard["content_sha256"] for shard in manifest["pieces"]],
        }
        self.hash: str = hash_json({**self.identity, "files": manifest["files"]})
        self.dtype = token_dtype(manifest["tokenizer"]["vocab_size"])
        self._splits: dict[str, Split] = {}
        is_mirror = (path / mirror.REMOTE).exists()
        files = manifest["files"]
        self._files = mirror.Mirror(path, files, self._check) if is_mirror else Present(path)

    @classmethod
    def open(cls, path: str | Path) -> "TokenStore":
        """Opens the store in folder `path`; checks that every file exists in its full size.

        Raises:
          DataError: it is no store, unfinished, damaged or of another format.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        needed = [TOKENIZER]
        dtype = token_dtype(manifest["tokenizer"]["vocab_size"])
        # Of each kind of file: what it counts, and bytes of one.
        counted = {"tokens": ("tokens", dtype.itemsize), "lengths": ("documents", 4)}
        for i, shard in enumerate(manifest["pieces"]):
            mine = [TOKENIZER, *(file.name for file in shard_files(folder, i))]
            needed += mine
            if missing := [name for name in mine if name not in manifest["files"]]:
                raise unusable(folder, f"the manifest is damaged (it lacks {missing})", MANIFEST)
            for split, (kind, (unit, size)) in itertools.product(SPLITS, counted.items()):
                name = shard_file(folder, i, split, kind).name
                if manifest["files"][name]["size_bytes"] != size * shard[split][unit]:
                    problem = f"its {shard[split][unit]} {unit} do not fit the size of {name}"
                    raise unusable(folder, f"the manifest is damaged: {problem}", MANIFEST)
        for name in dict.fromkeys([*manifest["files"], *needed]):
            expected = manifest["files"][name]
            path = folder / name
            if os.path.basename(name) != name or os.path.islink(path) or os.path.isdir(path):
                raise DataError(
                    f"{folder / MANIFEST}: the file name {name!r} leads out of the store folder. "
                    "This store was not made by data_pipeline.prepare: do not use it."
                )
            n_bytes = os.path.getsize(path) if os.path.isfile(path) else None
            if n_bytes is None and name != TOKENIZER and (folder / mirror.REMOTE).exists():
                continue
            if n_bytes is None or n_bytes != expected["size_bytes"]:
                state = "is missing" if n_bytes is None else f"has {n_bytes:,} bytes"
                said = f"the manifest says {expected['size_bytes']:,} bytes"
                raise unusable(folder, f"the file {state}, and {said}", name)
        return cls(folder, manifest)

    @property
    def sources(self) -> Mapping[str, "TokenStore"]:
        """This store, without a name."""
        return {"": self}

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the store; DataError where the tokens were made with another one."""
        tokenizer = Tokenizer.load(self.path / TOKENIZER)
        expected = self.manifest["tokenizer"]["hash"]
        if tokenizer.hash != expected:
            hashes = f"the hash {tokenizer.hash[:12]} and the store was made with {expected[:12]}"
            raise unusable(self.path, f"the tokenizer has {hashes}", TOKENIZER)
        return tokenizer

    def split(self, name: str) -> Split:
        """Returns the split "train" or "val"; its index is read once."""
        if name not in self._splits:
            self._splits[name] = self.part(name, range(len(self.manifest["pieces"])))
        return self._splits[name]

    def part(self, name: str, shards: range) -> Split:
        """Returns some shards of a split; reads their index."""
        if name not in SPLITS:
            raise ValueError(f"split {name!r}: there are {SPLITS}")
        pieces = {i: self.manifest["pieces"][i] for i in shards}
        return Split(self._files, name, pieces, self.dtype)

    def verify(self, split: str | None = None) -> int:
        """Reads every file, or those of one split; returns their number.

        Of a mirror, those that are there: each was read when it came.

        Raises:
          DataError: a file is not what the manifest says (its sha256 differs), cannot be read, or
            holds a token that the tokenizer has not.
        """
        names = [name for name in self.manifest["files"] if not split or f"-{split}." in name]
        for name in names:
            if isinstance(self._files, Present) or (self.path / name).exists():
                self._check(name, self.path / name)
        return len(names)

    def _check(self, name: str, path: Path) -> None:
        """Raises DataError where the file `name`, at `path`, is not what the manifest says."""
        try:
            digest, highest = _scan(path, self.dtype)
        except OSError as e:
            raise unusable(self.path, f"it cannot be read ({e.strerror})", name) from e
        if digest != self.manifest["files"][name]["sha256"]:
            problem = "the contents have changed since the store was made"
            raise unusable(self.path, problem, name)
        if name.endswith(".tokens") and highest >= self.tokenizer.vocab_size:
            size = f"the tokenizer has only {self.tokenizer.vocab_size:,}"
            raise unusable(self.path, f"it holds the token {highest:,}, and {size}", name)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = read_json(folder / MANIFEST, _MAX_MANIFEST, {"format": int})
    except DataError as e:
        if (folder / MANIFEST).is_file():
            raise unusable(folder, f"the manifest is damaged ({e})", MANIFEST) from e
        raise DataError(
            f"{folder}: this is no token store (it has no {MANIFEST}). Make one with "
            "`gptjax prepare ...`, which prints its folder; if the "
            "manifest was removed, delete the folder first."
        ) from None
    if manifest["format"] != FORMAT:
        problem = f"the store has format {manifest['format']} and this program reads {FORMAT}"
        raise unusable(folder, problem)
    problem = mismatch(manifest, _SCHEMA) or mismatch(manifest.get("published", {}), {str: str})
    if problem or not manifest["pieces"]:
        problem = f"the manifest is damaged ({problem or 'it lists no pieces'})"
        raise unusable(folder, problem, MANIFEST)
    digest = manifest.pop(_DIGEST, None)
    if digest != hash_json(manifest) if digest is not None else manifest.keys() - _KEYS:
        raise unusable(folder, "the manifest is damaged (it is not what was written)", MANIFEST)
    return manifest


def file_record(path: Path) -> dict[str, Any]:
    """Returns size and sha256 of a file, as the manifest holds them."""
    return {"size_bytes": path.stat().st_size, "sha256": _scan(path, np.dtype("u1"))[0]}


def _scan(path: Path, dtype: np.dtype) -> tuple[str, int]:
    """Returns the sha256 of a file and the highest of its numbers.

    Python's lock is free while a block is read, hashed and compared: other threads keep running.
    """
    digest, highest = hashlib.sha256(), 0
    data = memoryview(bytearray(_BUFFER))
    numbers = np.frombuffer(data, dtype)
    with path.open("rb") as f:
        while n := f.readinto(data):
            digest.update(data[:n])
            highest = max(highest, int(numbers[: n // dtype.itemsize].max(initial=0)))
    return digest.hexdigest(), highest


def record(data: bytes) -> dict[str, Any]:
    """Returns the `file_record` of a file of this content."""
    return {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest: the last step, which marks the store as complete."""
    write_atomically(folder / MANIFEST, manifest_bytes(manifest))


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """Returns the file of a manifest, with its digest."""
    content = {key: value for key, value in manifest.items() if key != _DIGEST}
    text = json.dumps({**content, _DIGEST: hash_json(content)}, indent=1)
    return (text + "\n").encode()


def shard_file(folder: Path, shard: int, split: str, kind: str) -> Path:
    """Returns the path of one file of a shard; `kind` is one of KINDS."""
    return folder / shard_name(shard, split, kind)


def shard_files(folder: Path, shard: int) -> list[Path]:
    """Returns the paths of all files of a shard."""
    return [shard_file(folder, shard, split, kind) for split in SPLITS for kind in KINDS]
