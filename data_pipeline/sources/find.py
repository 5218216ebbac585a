"""Finds the files of data.source: one, a folder, a glob; of any kind."""

import glob
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePath

from ml_collections import ConfigDict

from data_pipeline.sources import parquet, remote, text_files
from data_pipeline.sources.documents import MAGIC, Columns, NoSource, SourceFile
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
_KNOWN = "*.parquet, *.jsonl, *.json or *.txt file (the last three also .gz and .zst)"
_DOWNLOAD = (
    f"To download one file of FineWeb, {FINEWEB.size_bytes / 1e9:.1f} GB, add "
    f"--config.data.source=hf://datasets/{FINEWEB.dataset}/{FINEWEB.path} (or save it as "
    "data/fineweb_one_shard/000_00000.parquet). For your own text, name a file, a folder or a glob "
    "with --config.data.source=..."
)


def open_source(data: ConfigDict, *, download: bool = True) -> list[SourceFile]:
    """Returns the files of `data.source`, inspected; `data` is config.data.

    Raises:
      NoSource: there are none; or they are elsewhere, and `download` is False.
      DataError: one is unusable, or cannot be downloaded.
    """
    columns = Columns(data.text_column, data.id_column, data.separator.replace(r"\n", "\n"))
    of_kind: dict[str, dict[str, Path]] = {kind: {} for kind in _KINDS}
    if remote.is_remote(data.source):
        downloads = Path(data.cache_dir) / "downloads"
        named = remote.fetch(data.source, downloads, _data_files, download=download)
    else:
        named = find_files(data.source)
    for name, path in named.items():
        of_kind[_kind(name) or _PARQUET][name] = path
    opened = parquet.open_all(of_kind[_PARQUET], columns)
    separator = columns.separator.encode()
    formats: dict[str, Format] = {_JSON: JsonLines(columns), _TEXT: PlainText(separator)}
    cache, keep_before = Path(data.cache_dir) / "inspected", data.on_corrupt == "keep_before"
    for kind, format in formats.items():
        opened += text_files.open_all(of_kind[kind], format, cache, keep_before=keep_before)
    return opened


def find_files(source: str | Path) -> dict[str, Path]:
    """Returns the files of a local `source` by name, sorted; NoSource: there are none.

    The name of a file is its path below the folder, or below the folder in which a glob begins to
    match. Files in a folder of others that may be no data, *.txt and *.json, are left out.
    """
    path = Path(source)
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
