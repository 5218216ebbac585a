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
from typing import Any

import numpy as np

from configs.errors import DataError
from configs.read import MIB, mismatch, read_json
from data_pipeline.files import hash_json, write_atomically
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
_MAX_MANIFEST = 16 * MIB  # bytes: 10,000 sources
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
MAX_MAPS = 256  # token files of a split open at a time: the usual limit is 1,024 open files


def _unusable(folder: Path, problem: str, file: str = "") -> DataError:
    return DataError(
        f"{folder / file}: {problem}. Delete the folder {folder} and run again: the data is then "
        "prepared again."
    )


class Split:
    """One split of some shards. Documents count from 0 in the order of the source files."""

    def __init__(
        self, folder: Path, name: str, shards: Mapping[int, Mapping[str, Any]], dtype: np.dtype
    ) -> None:
        """Reads the document index (12 bytes a document); tokens stay on disk.

        `shards` are entries of the manifest by their number.

        Raises:
          DataError: an index disagrees with the manifest.
        """
        self._folder, self._name, self._dtype = folder, name, dtype
        self._numbers, self._shards = list(shards), list(shards.values())
        counts = [shard[name] for shard in self._shards]
        self.n_docs: int = sum(c["documents"] for c in counts)
        self.n_tokens: int = sum(c["tokens"] for c in counts)  # BOS included
        self.n_bytes: int = sum(c["bytes"] for c in counts)  # UTF-8 bytes of text
        paths = [shard_file(folder, number, name, "lengths") for number in shards]
        # int32 [n_docs], BOS included
        self.doc_lengths: np.ndarray = np.concatenate([np.fromfile(path, "<i4") for path in paths])
        self._starts = np.zeros(self.n_docs + 1, np.int64)  # first token of each document
        np.cumsum(self.doc_lengths, out=self._starts[1:])
        self._first_doc = np.cumsum([0, *(c["documents"] for c in counts)])
        self._first_token = np.cumsum([0, *(c["tokens"] for c in counts)])
        ends = self._starts[self._first_doc]
        if not np.array_equal(ends, self._first_token) or self.doc_lengths.min(initial=1) < 1:
            sums = f"{ends[-1]:,} tokens and the manifest says {self.n_tokens:,}"
            raise _unusable(folder, f"the document lengths of split {name!r} add up to {sums}")
        self._tokens = functools.lru_cache(MAX_MAPS)(self._map)

    def _shard_of(self, doc: int) -> int:
        if not 0 <= doc < self.n_docs:
            raise IndexError(f"document {doc} of {self.n_docs} in split {self._name!r}")
        if len(self._shards) == 1:
            return 0
        return int(np.searchsorted(self._first_doc, doc, side="right")) - 1

    def read(self, doc: int, start: int, stop: int) -> np.ndarray:
        """Returns tokens [start:stop), a view of the memory map; IndexError outside it."""
        shard, length = self._shard_of(doc), self.doc_lengths[doc]
        if not 0 <= start <= stop <= length:
            raise IndexError(f"tokens {start}:{stop} of document {doc}, which has {length}")
        base = int(self._starts[doc] - self._first_token[shard])
        return self._tokens(shard)[base + start : base + stop]

    def _map(self, shard: int) -> np.ndarray:
        path = shard_file(self._folder, self._numbers[shard], self._name, "tokens")
        # A plain ndarray over the map: slicing np.memmap itself costs several times as much.
        return np.asarray(np.memmap(path, self._dtype, mode="r"))

    def doc_id(self, doc: int) -> str:
        """Returns the source of a document as `file:row`; rows count from 0."""
        shard = self._shard_of(doc)
        path = shard_file(self._folder, self._numbers[shard], self._name, "rows")
        offset = 4 * (doc - int(self._first_doc[shard]))
        row = int(np.fromfile(path, "<u4", count=1, offset=offset)[0])
        return f"{self._shards[shard]['source']}:{row}"


class TokenStore:
    """A complete store, opened for reading."""

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
            needed += [file.name for file in shard_files(folder, i)]
            if missing := [name for name in needed if name not in manifest["files"]]:
                raise _unusable(folder, f"the manifest is damaged (it lacks {missing})", MANIFEST)
            for split, (kind, (unit, size)) in itertools.product(SPLITS, counted.items()):
                name = shard_file(folder, i, split, kind).name
                if manifest["files"][name]["size_bytes"] != size * shard[split][unit]:
                    problem = f"its {shard[split][unit]} {unit} do not fit the size of {name}"
                    raise _unusable(folder, f"the manifest is damaged: {problem}", MANIFEST)
        for name in dict.fromkeys([*manifest["files"], *needed]):
            expected = manifest["files"][name]
            path = folder / name
            if os.path.basename(name) != name or os.path.islink(path) or os.path.isdir(path):
                raise DataError(
                    f"{folder / MANIFEST}: the file name {name!r} leads out of the store folder. "
                    "This store was not made by data_pipeline.prepare: do not use it."
                )
            n_bytes = os.path.getsize(path) if os.path.isfile(path) else None
            if n_bytes is None or n_bytes != expected["size_bytes"]:
                state = "is missing" if n_bytes is None else f"has {n_bytes:,} bytes"
                said = f"the manifest says {expected['size_bytes']:,} bytes"
                raise _unusable(folder, f"the file {state}, and {said}", name)
        return cls(folder, manifest)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the store; DataError where the tokens were made with another one."""
        tokenizer = Tokenizer.load(self.path / TOKENIZER)
        expected = self.manifest["tokenizer"]["hash"]
        if tokenizer.hash != expected:
            hashes = f"the hash {tokenizer.hash[:12]} and the store was made with {expected[:12]}"
            raise _unusable(self.path, f"the tokenizer has {hashes}", TOKENIZER)
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
        return Split(self.path, name, pieces, self.dtype)

    def verify(self, split: str | None = None) -> int:
        """Reads every file, or those of one split; returns their number.

        Raises:
          DataError: a file is not what the manifest says (its sha256 differs), cannot be read, or
            holds a token that the tokenizer has not.
        """
        names = [name for name in self.manifest["files"] if not split or f"-{split}." in name]
        for name in names:
            try:
                digest, highest = _scan(self.path / name, self.dtype)
            except OSError as e:
                raise _unusable(self.path, f"it cannot be read ({e.strerror})", name) from e
            if digest != self.manifest["files"][name]["sha256"]:
                problem = "the contents have changed since the store was made"
                raise _unusable(self.path, problem, name)
            if name.endswith(".tokens") and highest >= self.tokenizer.vocab_size:
                size = f"the tokenizer has only {self.tokenizer.vocab_size:,}"
                raise _unusable(self.path, f"it holds the token {highest:,}, and {size}", name)
        return len(names)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = read_json(folder / MANIFEST, _MAX_MANIFEST, {"format": int})
    except DataError as e:
        if (folder / MANIFEST).is_file():
            raise _unusable(folder, f"the manifest is damaged ({e})", MANIFEST) from e
        raise DataError(
            f"{folder}: this is no token store (it has no {MANIFEST}). Make one with "
            "`python -m data_pipeline.prepare --config=...`, which prints its folder; if the "
            "manifest was removed, delete the folder first."
        ) from None
    if manifest["format"] != FORMAT:
        problem = f"the store has format {manifest['format']} and this program reads {FORMAT}"
        raise _unusable(folder, problem)
    problem = mismatch(manifest, _SCHEMA) or mismatch(manifest.get("published", {}), {str: str})
    if problem or not manifest["pieces"]:
        problem = f"the manifest is damaged ({problem or 'it lists no pieces'})"
        raise _unusable(folder, problem, MANIFEST)
    digest = manifest.pop(_DIGEST, None)
    if digest != hash_json(manifest) if digest is not None else manifest.keys() - _KEYS:
        raise _unusable(folder, "the manifest is damaged (it is not what was written)", MANIFEST)
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


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest: the last step, which marks the store as complete."""
    content = {key: value for key, value in manifest.items() if key != _DIGEST}
    text = json.dumps({**content, _DIGEST: hash_json(content)}, indent=1)
    write_atomically(folder / MANIFEST, (text + "\n").encode())


def shard_file(folder: Path, shard: int, split: str, kind: str) -> Path:
    """Returns the path of one file of a shard; `kind` is one of KINDS."""
    return folder / f"{shard:05d}-{split}.{kind}"


def shard_files(folder: Path, shard: int) -> list[Path]:
    """Returns the paths of all files of a shard."""
    return [shard_file(folder, shard, split, kind) for split in SPLITS for kind in KINDS]
