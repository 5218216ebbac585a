"""What is done for each source file, on any machine: survey, sample, encode.

A task reads its file, works on the disk of its own machine, and puts results into the folder of the
work, a JSON file last: a result exists only with it, and a task that runs twice writes the same.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configs.errors import DataError
from data_pipeline import encode, join, token_store, tokenizer_sample
from data_pipeline.folders import open_folder
from data_pipeline.sources.documents import Columns, Damage, SourceFile
from data_pipeline.sources.find import Unit, open_unit
from data_pipeline.sources.known_files import identify

SURVEYS, SHARDS = "surveys", "shards"  # folders of the work
VAL_HASHES, REPEATS = "val_hashes", "repeats"  # a file; a folder
HASH = np.dtype([("text_hash", "<u8"), ("val", "?")])  # of a document; of a survey's file
_SCRATCH = "gptjax-shard-"


class Task(NamedTuple):
    """A file of the source, or small ones together, and how it is read."""

    number: int  # of the shard in the store
    unit: Unit
    columns: Columns
    inspected: str  # folder of what is found in text files, on the disk of the task
    work: str  # place of the folder of the work
    val_fraction: float
    keep_before: bool  # of damage: see data.on_corrupt


class Sample(NamedTuple):
    """The argument of `count_words`."""

    task: Task
    places: tuple[tuple[int, int], ...]  # (chunk of the file, bytes of it)


class Encoding(NamedTuple):
    """The argument of `encode_shard`."""

    task: Task
    store: str  # place of its folder
    identity: dict[str, Any]  # of the file, when it was surveyed
    drop: bool  # see data.drop_duplicates


def result_name(folder: str, number: int) -> str:
    """Returns the name of the JSON file that ends a task."""
    return f"{folder}/{number:05d}.json"


def hashes_name(number: int) -> str:
    """Returns the name of the hashes of a file's documents."""
    return f"{SURVEYS}/{number:05d}.hashes"


def survey(task: Task) -> None:
    """Inspects a file and hashes its texts."""
    work = open_folder(task.work)
    with scratch() as disk:
        shard = _open(task, disk)
        n_usable = 0
        damaged: list[Damage] | None = [] if task.keep_before else None
        with (disk / "hashes").open("wb") as f:
            for chunk in shard.chunks:
                for document in chunk.read(damaged=damaged):
                    text_hash = encode.hash_text(document.utf8)
                    record = (text_hash, encode.is_val(document.id, task.val_fraction))
                    f.write(np.array(record, HASH).tobytes())
                    n_usable += 1
        _check_unchanged(task, shard, shard.identity)
        work.upload(disk / "hashes", hashes_name(task.number))
        result = {
            "identity": shard.identity,
            "published": identify(shard.path),
            "rows": shard.n_documents,
            "usable": n_usable,
            "text_bytes": [chunk.text_bytes for chunk in shard.chunks],
        }
    work.write(result_name(SURVEYS, task.number), json.dumps(result).encode())


def count_words(sample: Sample) -> Counter[str]:
    """Counts the words of some places of a file."""
    task = sample.task
    words: Counter[str] = Counter()
    with scratch() as disk:
        shard = _open(task, disk)
        for i, n_bytes in sample.places:
            place = (shard.chunks[i], n_bytes, task.val_fraction, task.keep_before)
            words.update(tokenizer_sample.count_place(tokenizer_sample.Place(*place)))
    return words


def encode_shard(item: Encoding) -> None:
    """Encodes a file and puts the shard into the store, its entry of the manifest last."""
    task = item.task
    work, store = open_folder(task.work), open_folder(item.store)
    with scratch() as disk:
        shard = _open(task, disk)
        work.download(token_store.TOKENIZER, disk / token_store.TOKENIZER)
        work.download(VAL_HASHES, disk / VAL_HASHES)
        repeats = None
        if item.drop:
            work.download(f"{REPEATS}/{task.number:05d}", disk / REPEATS)
            repeats = np.fromfile(disk / REPEATS, bool)
        tokenizer, is_chat = disk / token_store.TOKENIZER, bool(task.columns.messages)
        how = (tokenizer, task.val_fraction, task.keep_before, is_chat)
        parts = encode.plan_parts(shard, disk / "part", *how)
        for part in parts:
            encode.encode_part(part)
        _check_unchanged(task, shard, item.identity)
        (disk / "store").mkdir()
        entry = join.join_shard(
            *(parts, disk / "store", task.number, shard.name),
            val_hashes=np.fromfile(disk / VAL_HASHES, "<u8"),
            repeats=repeats,
            dtype=encode.load_tokenizer(disk / token_store.TOKENIZER).dtype,
        )
        for path in token_store.shard_files(disk / "store", task.number):
            store.upload(path, path.name)
    work.write(result_name(SHARDS, task.number), json.dumps(entry).encode())


def _open(task: Task, disk: Path) -> SourceFile:
    """Returns the file of a task; one that is elsewhere is on `disk` then."""
    places = Path(task.inspected), disk / "source"
    return open_unit(task.unit, task.columns, *places, keep_before=task.keep_before)


def _check_unchanged(task: Task, shard: SourceFile, identity: dict[str, Any]) -> None:
    if shard.identity != identity or shard.changed():
        raise DataError(
            f"{shard.path}: the file changed while the store was made. Wait until nothing writes "
            f"to it, remove {task.work} and run again."
        )


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Makes a folder on this machine's disk (TMPDIR); removes it, and those of killed processes."""
    top = Path(tempfile.gettempdir())
    with _locked(top / f"{_SCRATCH}lock", os.O_CREAT):
        for other in top.glob(f"{_SCRATCH}*.d"):
            with contextlib.suppress(OSError), _locked(other, 0, fcntl.LOCK_NB):
                shutil.rmtree(other, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(".d", _SCRATCH))
        held = contextlib.ExitStack()
        held.enter_context(_locked(folder, 0))
    with held:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, flags: int, how: int = 0) -> Iterator[None]:
    """Holds the kernel's lock on a file or folder, which the end of the process frees."""
    fd = os.open(path, os.O_RDONLY | flags, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(fd)
