"""Finds the files of data.source: one, a folder, a glob; of any kind."""

import glob
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

from ml_collections import ConfigDict

from configs.errors import DataError
from data_pipeline.folders import is_address
from data_pipeline.sources import parquet, remote, text_files
from data_pipeline.sources.conversations import Conversations
from data_pipeline.sources.documents import MAGIC, Columns, NoSource, SourceFile
from data_pipeline.sources.download import Remote, download_all
from data_pipeline.sources.formats import Format, JsonLines, PlainText
from data_pipeline.sources.known_files import FINEWEB

log = logging.getLogger(__name__)

_PARQUET, _JSON, _TEXT = "parquet", "JSON", "text"
_KINDS = {  # by name
    _PARQUET: re.compile(r"\.parquet$"),
    _JSON: re.compile(r"\.(jsonl|ndjson|json)(\.gz|\.zst)?$"),
    _TEXT: re.compile(r"\.txt(\.gz|\.zst)?$"),
}
_PACKAGES = Path(__file__).parents[2]  # the checkout, or where a wheel has data_pipeline
_BUNDLED = Path("data_pipeline/shard")
_DOUBTFUL = re.compile(r"\.(json|txt(\.gz|\.zst)?)$")  # beside others: README.txt, info.json
_KNOWN = "*.parquet, *.jsonl, *.json or *.txt file (the last three also .gz and .zst)"
_DOWNLOAD = (
    f"To download one file of FineWeb, {FINEWEB.size_bytes / 1e9:.1f} GB, add "
    f"--config.data.source=hf://datasets/{FINEWEB.dataset}/{FINEWEB.path} (or save it as "
    "data/fineweb_one_shard/000_00000.parquet). For your own text, name a file, a folder or a glob "
    "with --config.data.source=..."
)

_File = TypeVar("_File", Path, Remote, Path | Remote)


def open_source(data: ConfigDict, *, download: bool = True) -> list[SourceFile]:
    """Returns the files of `data.source`, inspected; `data` is config.data.

    Raises:
      NoSource: there are none; or they are elsewhere, and `download` is False.
      DataError: one is unusable, or cannot be downloaded.
    """
    columns = columns_of(data)
    local = Path(data.local_dir if is_address(data.cache_dir) else data.cache_dir)
    if is_address(data.source):
        named = remote.fetch(data.source, local / "downloads", _data_files, download=download)
    else:
        named = find_files(data.source)
    of_kind = _by_kind(named, data)
    formats = _formats(columns, [kind for kind, files in of_kind.items() if files])
    opened = parquet.open_all(of_kind[_PARQUET], columns)
    cache, keep_before = local / "inspected", data.on_corrupt == "keep_before"
    for kind, format in formats.items():
        opened += text_files.open_all(of_kind[kind], format, cache, keep_before=keep_before)
    return opened


def columns_of(data: ConfigDict) -> Columns:
    """Returns where rows have their text and id; `data` is config.data."""
    id_key = "split_by" if data.split_by else "id_column"
    separator = data.separator.replace(r"\n", "\n")
    return Columns(data.text_column, data[id_key], separator, data.messages_column, id_key)


def _formats(columns: Columns, kinds: Iterable[str]) -> dict[str, Format]:
    """Returns the formats of files of records; NoSource: files of these kinds are not read so."""
    if columns.messages:
        if other := [kind for kind in kinds if kind != _JSON]:
            raise NoSource(
                f"data.source: conversations (data.messages_column = {columns.messages!r}) are "
                f"read from JSON lines, and it has files of {other[0]}. Write one JSON object a "
                "line, or name the files with a glob such as 'FOLDER/*.jsonl'."
            )
        return {_JSON: Conversations(columns)}
    return {_JSON: JsonLines(columns), _TEXT: PlainText(columns.separator.encode())}


class Unit(NamedTuple):
    """Files that become one shard of a store; none of them is open, or downloaded."""

    kind: str
    files: tuple[tuple[str, Path | Remote], ...]  # name in the source, where it is


def list_units(data: ConfigDict) -> list[Unit]:
    """Returns the units of `data.source`, in the order of `open_source`; NoSource: none."""
    found: dict[str, Path | Remote]
    if is_address(data.source):
        found = {file.name: file for file in remote.list_files(data.source, _data_files)}
    else:
        found = {**find_files(data.source)}
    units = []
    for kind, of_kind in _by_kind(found, data).items():
        files = list(of_kind.items())
        groups = [slice(i, i + 1) for i in range(len(files))]
        if kind == _TEXT and not data.separator:
            sizes = [f.size if isinstance(f, Remote) else f.stat().st_size for _, f in files]
            groups = list(text_files.groups_of(sizes))
        units += [Unit(kind, tuple(files[group])) for group in groups]
    return units


def open_unit(
    unit: Unit, columns: Columns, cache: Path, downloads: Path, *, keep_before: bool
) -> SourceFile:
    """Returns the files of a unit, inspected; what that finds in text is kept in `cache`.

    Remote ones are in `downloads` then; DataError where that fails.
    """
    if elsewhere := [file for _, file in unit.files if isinstance(file, Remote)]:
        downloads.mkdir(parents=True, exist_ok=True)
        download_all(elsewhere, downloads)
    named = {n: downloads / n if isinstance(f, Remote) else f for n, f in unit.files}
    formats = _formats(columns, [unit.kind])
    if unit.kind == _PARQUET:
        (opened,) = parquet.open_all(named, columns)
    else:
        format = formats[unit.kind]
        (opened,) = text_files.open_all(named, format, cache, keep_before=keep_before)
    return opened


def find_files(source: str | Path) -> dict[str, Path]:
    """Returns the files of a local `source` by name, sorted; NoSource: there are none.

    The name of a file is its path below the folder, or below the folder in which a glob begins to
    match. Files in a folder of others that may be no data, *.txt and *.json, are left out. A path
    is relative to the current folder; that of a bundled file names it in every folder.
    """
    path = Path(source)
    if path.parent == _BUNDLED and not os.path.exists(path) and os.path.isfile(_PACKAGES / path):
        path = _PACKAGES / path
    if os.path.isfile(path):  # False where a disk is gone, which Path's may raise
        return {path.name: path}
    if os.path.isdir(path):
        found = {p.name: p for p in path.glob("[!.]*") if p.is_file()}
        chosen = _data_files(found, is_folder=True)
        missing = f"the folder {path} holds no {_KNOWN}"
    elif MAGIC.search(str(source)):
        root = _root(str(source))
        matches = (Path(match) for match in glob.glob(str(source), recursive=True))
        found = {p.relative_to(root).as_posix(): p for p in matches if p.is_file()}
        chosen = _data_files(found, is_folder=False)
        missing = f"{source} matches no {_KNOWN}"
    else:
        found, chosen, missing = {}, [], f"there is no file or folder {path}"
    if not chosen:
        raise NoSource(f"data.source: {missing}. {_DOWNLOAD}")
    return {name: found[name] for name in chosen}


def _by_kind(named: Mapping[str, _File], data: ConfigDict) -> dict[str, dict[str, _File]]:
    """Returns the files of a source by kind; DataError: some have no column data.split_by."""
    of_kind: dict[str, dict[str, _File]] = {kind: {} for kind in _KINDS}
    for name, file in named.items():
        of_kind[_kind(name) or _PARQUET][name] = file
    if data.split_by and of_kind[_TEXT]:
        raise DataError(
            f"data.split_by = {data.split_by!r}: {next(iter(of_kind[_TEXT]))} is a file of text, "
            "which has no columns. Leave data.split_by empty, or name a source of parquet or JSON "
            "lines with --config.data.source=..."
        )
    return of_kind


def _data_files(names: Iterable[str], *, is_folder: bool) -> list[str]:
    """Returns those names, sorted, that are of data; of a folder, not the doubtful ones."""
    known = sorted(name for name in names if _kind(name))
    doubtful = [name for name in known if _DOUBTFUL.search(name)]
    if not is_folder or len(doubtful) in (0, len(known)):
        return known
    log.warning(
        "%s%s beside other files in data.source may be no data and is not used: "
        "--config.data.source='FOLDER/*' takes all files",
        *(doubtful[0], ", ..." if doubtful[1:] else ""),
    )
    return [name for name in known if name not in doubtful]


def _root(pattern: str) -> Path:
    """Returns the folder in which a glob begins to match."""
    parts = PurePath(pattern).parts
    n = next(i for i, part in enumerate(parts) if MAGIC.search(part))
    return Path(*parts[:n])


def _kind(name: str) -> str | None:
    return next((kind for kind, pattern in _KINDS.items() if pattern.search(name)), None)
