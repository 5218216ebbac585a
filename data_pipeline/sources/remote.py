"""Files elsewhere (hf://, s3://, gs://, https://, ... by fsspec): listed, and downloaded once.

A source is listed when its download begins. Once all its files are there, no network is used.
"""

import base64
import json
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from configs.errors import DataError, UserError
from configs.extras import imports_of_extra
from configs.read import MIB, read_json
from data_pipeline.files import hash_json, write_atomically
from data_pipeline.lock import FileLock
from data_pipeline.sources.documents import MAGIC, NoSource
from data_pipeline.sources.download import (
    WEB,
    Remote,
    download_all,
    is_complete,
    look_up,
    protocol_of,
    version_of,
)
from data_pipeline.sources.parquet_footer import first_line

_MAX_LISTING = 64 * MIB
_SCHEMA = {"source": str, "names": [str]}


class _Found(NamedTuple):
    """A file of a listing."""

    name: str  # below the folder of the source
    info: dict[str, Any]  # of fsspec


def fetch(
    source: str, folder: Path, choose: Callable[..., list[str]], *, download: bool
) -> dict[str, Path]:
    """Returns the files of a remote source, below `folder`, by name; downloads what is missing.

    `choose(names, is_folder=...)` says which files of a folder or glob are data.

    Raises:
      NoSource: it cannot be reached, or holds no data; or a download is needed, without `download`.
      DataError: see `download_all`.
      UserError: a package is missing; the protocol is not known.
    """
    slug = re.sub(r"[^\w.-]+", "-", PurePosixPath(source).name)[:40]
    place = folder / f"{slug}-{hash_json(source)[:12]}"
    listing = place.with_name(f"{place.name}.json")
    if (names := _complete(place, listing)) is None and not download:
        raise NoSource(f"data.source: {source} is not downloaded yet.")
    if names is None:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f".{place.name}.lock"), wait=True):
            if (names := _complete(place, listing)) is None:
                files = list_files(source, choose)
                names = [file.name for file in files]
                text = json.dumps({"source": source, "names": names})
                write_atomically(listing, text.encode())
                download_all(files, place)
    return {name: place / name for name in names}


def _complete(place: Path, listing: Path) -> list[str] | None:
    """Returns the names of a source that was downloaded whole."""
    try:
        names: list[str] = read_json(listing, _MAX_LISTING, _SCHEMA)["names"]
    except DataError:
        return None
    return names if all(is_complete(place, name) for name in names) else None


def list_files(source: str, choose: Callable[..., list[str]]) -> list[Remote]:
    """Returns the files of a remote source; for `choose` and errors see `fetch`."""
    with imports_of_extra("remote"):
        import fsspec
    try:
        with imports_of_extra("remote"):
            fs, path = fsspec.core.url_to_fs(source)
            fs.invalidate_cache()
            found = _find(fs, path)
    except UserError:
        raise
    except Exception as error:  # of whatever library is behind fsspec
        if isinstance(error, ValueError) and str(error).startswith("Protocol not known"):
            raise UserError(f"data.source: {source}: {error}.") from error
        reason = "there is nothing" if isinstance(error, FileNotFoundError) else first_line(error)
        raise NoSource(
            f"data.source: {source} cannot be listed: {reason}. Check the name, the network, and "
            "what it takes to log in there."
        ) from error
    is_file = [file.info["name"] for file in found] == [fs._strip_protocol(path)]
    if not is_file and protocol_of(fs) not in WEB:
        chosen = choose([file.name for file in found], is_folder=not MAGIC.search(path))
        found = [file for file in found if file.name in chosen]
    if not found:
        raise NoSource(f"data.source: {source} holds no files of a kind that can be read.")
    return [_remote(fs, file) for file in sorted(found, key=lambda file: file.name)]


def _find(fs: Any, path: str) -> list[_Found]:
    """Returns the files that a path, a folder or a glob names."""
    if protocol_of(fs) in WEB:
        return [_Found(PurePosixPath(urllib.parse.urlsplit(path).path).name, fs.info(path))]
    if MAGIC.search(path):
        parts = PurePosixPath(path).parts
        n_fixed = next(i for i, part in enumerate(parts) if MAGIC.search(part))
        infos = list(fs.glob(path, detail=True).values())
    else:
        n_fixed, infos = -1, look_up(fs, path)
    return [
        _Found("/".join(PurePosixPath(info["name"]).parts[n_fixed:]), info)
        for info in infos
        if info["type"] == "file"
    ]


def _remote(fs: Any, found: _Found) -> Remote:
    info = found.info
    if ".." in PurePosixPath(found.name).parts or info["size"] is None:
        reason = "its size is not known" if info["size"] is None else "its name leads elsewhere"
        raise DataError(f"{info['name']}: {reason}: download it, and name the file itself.")
    return Remote(found.name, fs, info["name"], info["size"], version_of(info), _digest(fs, info))


def _digest(fs: Any, info: dict[str, Any]) -> str:
    """Returns the digest that is published of a file, as `algorithm:hex`, or ""."""
    if lfs := info.get("lfs"):  # of the Hub
        return f"sha256:{lfs['sha256']}"
    encoded = info.get("md5Hash") or info.get("Content-MD5")  # of Google's storage; of HTTP
    if encoded:
        return f"md5:{base64.b64decode(encoded).hex()}"
    etag = str(info.get("ETag", "")).strip('"')
    if protocol_of(fs) == "s3" and re.fullmatch("[0-9a-f]{32}", etag):  # not of several parts
        bucket, _, key = info["name"].partition("/")
        head = fs.call_s3("head_object", Bucket=bucket, Key=key)
        if head.get("ServerSideEncryption", "AES256") == "AES256":  # a key of KMS has other ETags
            return f"md5:{etag}"
    return ""
