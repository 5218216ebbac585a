"""The token store on disk: a folder of flat uint16 token files with document lengths.

    manifest.json          what the store is made of, and counts; written last
    tokenizer.model
    00000-train.tokens     <u2: BOS, tokens of a document, BOS, tokens of the next, ...
    00000-train.lengths    <i4: tokens of each document, BOS included
    00000-train.rows       <u4: row of each document in its parquet file
    00000-val.*            the same; 00001-* where there are several parquet files

One parquet file becomes one piece (00000); data_pipeline.encode writes it.
"""

import functools
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import DataError
from data_pipeline.files import hash_json, write_atomically
from data_pipeline.tokenizer import Tokenizer

FORMAT = 2  # raise it when files or their meaning change: older stores are then prepared again
SPLITS = ("train", "val")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"  # SentencePiece; of an imported GPT-2: what its tokenizer.json says
_COUNTED = (("tokens", "tokens", 2), ("lengths", "documents", 4))  # file, of what, bytes of each
MAX_MAPS = 256  # token files of a split that are open at a time: a process may open 1,024 files
_REMEDY = "Delete the folder {folder} and run again: the data is then prepared anew."


class Split:
    """One split of a store. Documents count from 0 in the order of the parquet files."""

    def __init__(self, folder: Path, name: str, pieces: Sequence[Mapping[str, Any]]) -> None:
        """Reads the document index (12 bytes a document); tokens stay on disk.

        Raises:
          DataError: an index disagrees with the manifest.
        """
        self._folder, self._name, self._pieces = folder, name, pieces
        counts = [piece[name] for piece in pieces]
        self.n_docs: int = sum(c["documents"] for c in counts)
        self.n_tokens: int = sum(c["tokens"] for c in counts)  # BOS included
        self.n_bytes: int = sum(c["bytes"] for c in counts)  # UTF-8 bytes of text
        lengths = [np.fromfile(piece_file(folder, i, name, "lengths"), "<i4") for i in self._range]
        self.doc_lengths: np.ndarray = np.concatenate(lengths)  # int32 [n_docs], BOS included
        self._starts = np.zeros(self.n_docs + 1, np.int64)  # first token of each document
        np.cumsum(self.doc_lengths, out=self._starts[1:])
        self._first_doc = np.cumsum([0, *(c["documents"] for c in counts)])
        self._first_token = np.cumsum([0, *(c["tokens"] for c in counts)])
        ends = self._starts[self._first_doc]
        if not np.array_equal(ends, self._first_token) or self.doc_lengths.min(initial=1) < 1:
            raise DataError(
                f"{folder}: the document lengths of split {name!r} add up to {ends[-1]:,} tokens "
                f"and the manifest says {self.n_tokens:,}. " + _REMEDY.format(folder=folder)
            )
        self._tokens = functools.lru_cache(MAX_MAPS)(self._map)

    @property
    def _range(self) -> range:
        return range(len(self._pieces))

    def _piece_of(self, doc: int) -> int:
        if not 0 <= doc < self.n_docs:
            raise IndexError(f"document {doc} of {self.n_docs} in split {self._name!r}")
        if len(self._pieces) == 1:
            return 0
        return int(np.searchsorted(self._first_doc, doc, side="right")) - 1

    def read(self, doc: int, start: int, stop: int) -> np.ndarray:
        """Returns tokens [start:stop) of document `doc`, uint16: a view of the memory map.

        Raises:
          IndexError: the document, or a part of the range, does not exist.
        """
        piece = self._piece_of(doc)
        if not 0 <= start <= stop <= self.doc_lengths[doc]:
            raise IndexError(
                f"tokens {start}:{stop} of document {doc}, which has {self.doc_lengths[doc]}"
            )
        base = int(self._starts[doc] - self._first_token[piece])
        tokens = self._tokens(piece)
        return tokens[base + start : base + stop]

    def _map(self, piece: int) -> np.ndarray:
        path = piece_file(self._folder, piece, self._name, "tokens")
        # A plain ndarray over the map: slicing np.memmap itself costs several times as much.
        return np.asarray(np.memmap(path, "<u2", mode="r"))

    def doc_id(self, doc: int) -> str:
        """Returns where document `doc` comes from, as `file.parquet:row` (rows count from 0)."""
        piece = self._piece_of(doc)
        path = piece_file(self._folder, piece, self._name, "rows")
        offset = 4 * (doc - int(self._first_doc[piece]))
        row = int(np.fromfile(path, "<u4", count=1, offset=offset)[0])
        return f"{self._pieces[piece]['source']}:{row}"


class TokenStore:
    """A complete store, opened for reading."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Use `open`."""
        self.path = path
        self.manifest = manifest
        # What makes this store another than that one, in a form that can be told: `differences`.
        self.identity: dict[str, Any] = {
            **{key: manifest[key] for key in ("format", "sources", "settings", "tokenizer")},
            "content": [piece["content_sha256"] for piece in manifest["pieces"]],
        }
        self.hash: str = hash_json({**self.identity, "files": manifest["files"]})
        self._splits: dict[str, Split] = {}

    @classmethod
    def open(cls, path: str | Path) -> "TokenStore":
        """Opens the store in folder `path`, after checking that every file is there, at full size.

        Raises:
          DataError: no store, an unfinished or damaged one, or one of another format.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        try:
            return cls._checked(folder, manifest)
        except (KeyError, TypeError, AttributeError) as e:
            raise DataError(
                f"{folder / MANIFEST}: the manifest is damaged ({e!r}). "
                + _REMEDY.format(folder=folder)
            ) from e

    @classmethod
    def _checked(cls, folder: Path, manifest: dict[str, Any]) -> "TokenStore":
        needed = [TOKENIZER]
        for i, piece in enumerate(manifest["pieces"]):
            needed += [file.name for file in piece_files(folder, i)]
            for split, (kind, of, size) in itertools.product(SPLITS, _COUNTED):
                name = piece_file(folder, i, split, kind).name
                if manifest["files"][name]["size_bytes"] != size * piece[split][of]:
                    raise DataError(
                        f"{folder / MANIFEST}: the manifest is damaged: {piece[split][of]} {of} "
                        f"are not what {name} has. " + _REMEDY.format(folder=folder)
                    )
        for name in dict.fromkeys([*manifest["files"], *needed]):
            expected = manifest["files"][name]
            file = folder / name
            try:
                found: os.stat_result | None = file.lstat()
            except (OSError, ValueError):  # ValueError: no file can have such a name
                found = None
            link = found is not None and not stat.S_ISREG(found.st_mode)
            if link or os.path.basename(name) != name:
                raise DataError(
                    f"{folder / MANIFEST}: the file name {name!r} leads out of the store folder. "
                    "This store was not made by data_pipeline.prepare: do not use it."
                )
            if found is None or found.st_size != expected["size_bytes"]:
                state = "is missing" if found is None else f"has {found.st_size:,} bytes"
                raise DataError(
                    f"{file}: the file {state}, and the manifest says "
                    f"{expected['size_bytes']:,} bytes. " + _REMEDY.format(folder=folder)
                )
        return cls(folder, manifest)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the store.

        Raises:
          DataError: its pieces are not those the tokens were made with.
        """
        tokenizer = Tokenizer.load(self.path / TOKENIZER)
        expected = self.manifest["tokenizer"]["hash"]
        if tokenizer.hash != expected:
            raise DataError(
                f"{self.path / TOKENIZER}: the tokenizer has the hash {tokenizer.hash[:12]} and "
                f"the store was made with {expected[:12]}. " + _REMEDY.format(folder=self.path)
            )
        return tokenizer

    def split(self, name: str) -> Split:
        """Returns the split "train" or "val"; its index is read once."""
        if name not in SPLITS:
            raise ValueError(f"split {name!r}: there are {SPLITS}")
        if name not in self._splits:
            self._splits[name] = Split(self.path, name, self.manifest["pieces"])
        return self._splits[name]

    def verify(self) -> None:
        """Reads every file and compares its hash with the manifest.

        Raises:
          DataError: a file has changed since it was written.
        """
        for name, expected in self.manifest["files"].items():
            if file_record(self.path / name) != expected:
                raise DataError(
                    f"{self.path / name}: the contents have changed since the store was made. "
                    + _REMEDY.format(folder=self.path)
                )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    remedy = _REMEDY.format(folder=folder)
    try:
        manifest = json.loads(path.read_text())
        found = manifest["format"]
    except FileNotFoundError:
        raise DataError(
            f"{folder}: this is no token store (it has no {MANIFEST}). Make one with "
            "`python -m data_pipeline.prepare --config=...`, which prints its folder; if something "
            "removed the manifest, delete the folder first."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path}: the manifest is damaged ({e}). {remedy}") from e
    if found != FORMAT:
        raise DataError(
            f"{folder}: the store has format {found} and this program reads {FORMAT}. {remedy}"
        )
    keys = {"sources", "settings", "tokenizer", "splits", "pieces", "damaged", "files"}
    if missing := sorted(keys - manifest.keys()):
        raise DataError(f"{path}: the manifest is damaged (it lacks {missing}). {remedy}")
    return manifest


def file_record(path: Path) -> dict[str, Any]:
    """Returns size and sha256 of a file, as the manifest holds them."""
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return {"size_bytes": path.stat().st_size, "sha256": digest}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest: the last step, which declares the files of the folder complete."""
    write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def piece_file(folder: Path, piece: int, split: str, kind: str) -> Path:
    """Returns the path of one file of a piece; `kind` is tokens, lengths or rows."""
    return folder / f"{piece:05d}-{split}.{kind}"


def piece_files(folder: Path, piece: int) -> list[Path]:
    """Returns the paths of all files of a piece."""
    kinds = ("tokens", "lengths", "rows")
    return [piece_file(folder, piece, split, kind) for split in SPLITS for kind in kinds]
