"""Finds the files of data.source: one, a folder, a glob; of any kind."""

import glob
import logging
import os
import re
from pathlib import Path, PurePath
from typing import NamedTuple

from ml_collections import ConfigDict

from configs.errors import DataError
from data_pipeline.sources import parquet, text_files
from data_pipeline.sources.documents import Columns, FileState, SourceFile
from data_pipeline.sources.formats import Format, JsonLines, PlainText
from data_pipeline.sources.known_files import FINEWEB

log = logging.getLogger(__name__)

_PARQUET, _JSON, _TEXT = "parquet", "JSON", "text"
_KINDS = {  # by name
    _PARQUET: re.compile(r"\.parquet$"),
    _JSON: re.compile(r"\.(jsonl|ndjson|json)(\.gz|\.zst)?$"),
    _TEXT: re.compile(r"\.txt(\.gz|\.zst)?$"),
}
_DOUBTFUL = re.compile(r"\.(json|txt(\.gz|\.zst)?)$")  # beside others: README.txt, info.json
_MAGIC = re.compile(r"[*?\[]")
_KNOWN = "*.parquet, *.jsonl, *.json or *.txt file (the last three also .gz and .zst)"
_DOWNLOAD = (
    f"To download one file of FineWeb, {FINEWEB.size_bytes / 1e9:.1f} GB, add "
    f"--config.data.source=hf://datasets/{FINEWEB.dataset}/{FINEWEB.path} (or save it as "
    "data/fineweb_one_shard/000_00000.parquet). For your own text, name a file, a folder or a glob "
    "with --config.data.source=..."
)


class NoSource(DataError):
    """There is nothing to read at data.source."""


def open_source(data: ConfigDict) -> list[SourceFile]:
    """Returns the files of `data.source`, inspected; `data` is config.data.

    Raises:
      NoSource: there are none.
      DataError: one is unusable.
    """
    columns = columns_of(data)
    of_kind: dict[str, dict[str, Path]] = {kind: {} for kind in _KINDS}
    for name, path in find_files(data.source).items():
        of_kind[_kind(name) or _PARQUET][name] = path
    opened = parquet.open_all(of_kind[_PARQUET], columns)
    separator = columns.separator.encode()
    formats: dict[str, Format] = {_JSON: JsonLines(columns), _TEXT: PlainText(separator)}
    cache, keep_before = Path(data.cache_dir) / "inspected", data.on_corrupt == "keep_before"
    for kind, format in formats.items():
        opened += text_files.open_all(of_kind[kind], format, cache, keep_before=keep_before)
    return opened


def columns_of(data: ConfigDict) -> Columns:
    """Returns where rows have their text and id; `data` is config.data."""
    return Columns(data.text_column, data.id_column, data.separator.replace(r"\n", "\n"))


class Unit(NamedTuple):
    """Files that become one shard of a store; none of them is open."""

    kind: str
    files: tuple[tuple[str, Path], ...]  # name in the source, path


def list_units(data: ConfigDict) -> list[Unit]:
    """Returns the units of `data.source`, in the order of `open_source`; NoSource: none."""
    of_kind: dict[str, list[tuple[str, Path]]] = {kind: [] for kind in _KINDS}
    for name, path in find_files(data.source).items():
        of_kind[_kind(name) or _PARQUET].append((name, path))
    units = []
    for kind, files in of_kind.items():
        groups = [slice(i, i + 1) for i in range(len(files))]
        if kind == _TEXT and not data.separator:
            groups = list(text_files.groups_of([FileState.of(path) for _, path in files]))
        units += [Unit(kind, tuple(files[group])) for group in groups]
    return units


def open_unit(unit: Unit, columns: Columns, cache: Path, *, keep_before: bool) -> SourceFile:
    """Returns the files of a unit, inspected; what that finds in text is kept in `cache`."""
    named = dict(unit.files)
    if unit.kind == _PARQUET:
        (opened,) = parquet.open_all(named, columns)
    else:
        text = PlainText(columns.separator.encode())
        format = JsonLines(columns) if unit.kind == _JSON else text
        (opened,) = text_files.open_all(named, format, cache, keep_before=keep_before)
    return opened


def find_files(source: str | Path) -> dict[str, Path]:
    """Returns the files of `source` by name, sorted; NoSource: there are none.

    The name of a file is its path below the folder, or below the folder in which a glob begins to
    match. Files in a folder of others that may be no data, *.txt and *.json, are left out.
    """
    path = Path(source)
    if os.path.isfile(path):  # False where a disk is gone, which Path's may raise
        return {path.name: path}
    if os.path.isdir(path):
        found = {p.name: p for p in path.glob("[!.]*") if _kind(p.name) and p.is_file()}
        doubtful = sorted(filter(_DOUBTFUL.search, found))
        if doubtful and len(doubtful) < len(found):
            log.warning(
                "%s: %s%s beside other files may be no data and are not used: for all files, "
                "add --config.data.source='%s/*'",
                *(path, doubtful[0], ", ..." if doubtful[1:] else "", path),
            )
            found = {name: p for name, p in found.items() if name not in doubtful}
        missing = f"the folder {path} holds no {_KNOWN}"
    elif _MAGIC.search(str(source)):
        root = _root(str(source))
        matches = (Path(match) for match in glob.glob(str(source), recursive=True))
        found = {p.relative_to(root).as_posix(): p for p in matches if p.is_file()}
        found = {name: p for name, p in found.items() if _kind(name)}
        missing = f"{source} matches no {_KNOWN}"
    else:
        found, missing = {}, f"there is no file or folder {path}"
    if not found:
        raise NoSource(f"data.source: {missing}. {_DOWNLOAD}")
    return dict(sorted(found.items()))


def _root(pattern: str) -> Path:
    """Returns the folder in which a glob begins to match."""
    parts = PurePath(pattern).parts
    n = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    return Path(*parts[:n])


def _kind(name: str) -> str | None:
    return next((kind for kind, pattern in _KINDS.items() if pattern.search(name)), None)
