"""Makes a store shard by shard: on the machines of a cluster, or into an object store.

    survey     each file: identity, rows, a hash of each text, whether it is in val
    sample     words of places that are spread over all files -> the tokenizer
    compare    the hashes of all files -> which texts are in val, which repeat
    encode     each file -> a shard of the store, and its entry of the manifest
    manifest   from these entries: no token is copied

Results are in a folder `.work-...` beside the store, so that a killed preparation continues where
it was. The store is the same, byte for byte, as one that `prepare` makes on one machine. What is in
memory here grows by a few numbers for each file.
"""

import collections
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from ml_collections import ConfigDict

from configs.errors import DataError
from data_pipeline import (
    duplicates,
    join,
    mirror,
    shard_tasks,
    token_store,
    tokenizer_sample,
    worker_pool,
)
from data_pipeline.files import fsync, hash_json
from data_pipeline.folders import Folder, is_address, open_folder
from data_pipeline.locate import tokenizer_file
from data_pipeline.progress import BatchProgress
from data_pipeline.ray_pool import RayPool
from data_pipeline.shard_tasks import Encoding, Sample, Task, result_name
from data_pipeline.sources.documents import FileState
from data_pipeline.sources.download import Remote
from data_pipeline.sources.find import Unit, columns_of, list_units
from data_pipeline.tokenizer import Tokenizer, train_from_counts

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
NameOf = Callable[[Sequence[dict[str, Any]]], str]


class Pool(Protocol):
    """What runs tasks: `worker_pool.Pool`, `ray_pool.RayPool`."""

    def run(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
        """Yields each item with its result, in the order in which they finish."""


def is_wanted(config: ConfigDict) -> bool:
    """Returns whether a configuration asks for this: by its engine, or the place of its stores."""
    return config.data.engine == "ray" or is_address(config.data.cache_dir)


def prepare(config: ConfigDict, settings: dict[str, Any], name_of: NameOf | None) -> Path | None:
    """Returns the folder of a store, or of its mirror on this disk; makes it if needed.

    Args:
      config: of the run.
      settings: what the content depends on besides the source.
      name_of: gives the name of the store from the identities of its files; None: it is not made,
        and where there is none, None is returned.

    Raises:
      DataError: see `Making.make`; there is no source.
      UserError: the engine or the place of stores cannot be used.
    """
    data = config.data
    units = list_units(data)
    making = Making(config, settings, units)
    name = making.finished()
    if name is None:
        if name_of is None:
            return None
        n_parts = worker_pool.PARTS_TO_PAY * len(units)  # a process is worth it for each file
        on_ray = data.engine == "ray"
        with RayPool() if on_ray else worker_pool.Pool(data.prepare_workers, n_parts) as pool:
            name = making.make(pool, name_of)
    if not is_address(data.cache_dir):
        return Path(data.cache_dir, name)
    always = (token_store.MANIFEST, token_store.TOKENIZER)
    address = f"{data.cache_dir.rstrip('/')}/{name}"
    return mirror.make(address, Path(data.local_dir), data.cache_bytes, always)


class Making:
    """A store that is being made: what is done, and where."""

    def __init__(self, config: ConfigDict, settings: dict[str, Any], units: Sequence[Unit]):
        """Reads no source."""
        self._config, self._settings = config, settings
        listing = [_version(name, file) for unit in units for name, file in unit.files]
        self._key = hash_json([token_store.FORMAT, settings, listing])[:12]
        self._cache = str(config.data.cache_dir).rstrip("/")
        self._top = open_folder(self._cache)
        place = f"{self._cache}/.work-{self._key}"
        self._work = open_folder(place)
        columns, inspected = columns_of(config.data), f"{config.data.local_dir}/inspected"
        keep_before = config.data.on_corrupt == "keep_before"
        self._tasks = [
            Task(i, unit, columns, inspected, place, settings["val_fraction"], keep_before)
            for i, unit in enumerate(units)
        ]

    def finished(self) -> str | None:
        """Returns the name of the store where it has been made."""
        pointer = self._top.read(self._pointer)
        name: str | None = json.loads(pointer)["store"] if pointer else None
        return name if name and token_store.MANIFEST in self._top.names(name) else None

    @property
    def _pointer(self) -> str:
        return f".prepared-{self._key}.json"

    def make(self, pool: Pool, name_of: NameOf) -> str:
        """Makes the store; returns its name, `name_of` the identities of its files.

        Raises:
          DataError: a file is unusable, or a task or a place of files failed. What is done stays.
        """
        self._run(pool, "surveying", shard_tasks.survey, shard_tasks.SURVEYS, self._tasks)
        surveys = []
        for task in self._tasks:
            surveys.append(self._result(shard_tasks.SURVEYS, task))
            surveys[-1]["n_chunks"] = len(surveys[-1].pop("text_bytes"))  # which can be thousands
        name = name_of([survey["identity"] for survey in surveys])
        if token_store.MANIFEST not in self._top.names(name):  # nor made in another way
            tokenizer = self._tokenizer(pool, [survey["n_chunks"] for survey in surveys])
            n_distinct = self._compare([survey["usable"] for survey in surveys])
            on_disk = not is_address(self._cache)
            place = f"{self._work.address}/store" if on_disk else f"{self._cache}/{name}"
            drop = self._config.data.drop_duplicates
            encodings = (
                Encoding(task, place, survey["identity"], drop)
                for task, survey in zip(self._tasks, surveys, strict=True)
            )
            self._run(pool, "encoding", shard_tasks.encode_shard, shard_tasks.SHARDS, encodings)
            self._write(open_folder(place), surveys, tokenizer, n_distinct)
            if on_disk and not Path(self._cache, name).exists():
                Path(place).rename(Path(self._cache, name))
                fsync(Path(self._cache))
        self._top.write(self._pointer, json.dumps({"store": name}).encode())
        self._work.remove()
        log.info("the token store is ready: %s/%s", self._cache, name)
        return name

    def _run(
        self,
        pool: Pool,
        verb: str,
        function: Callable[[Any], None],
        folder: str,
        items: Iterable[Any],
    ) -> None:
        """Runs the tasks that have no result yet."""
        done = self._work.names(folder)
        total = len(self._tasks)
        n_done = sum(f"{i:05d}.json" in done for i in range(total))
        if n_done:
            log.info("resuming after an interruption: %d of %d files %s", n_done, total, verb)
        todo = (x for x in items if f"{_task_of(x).number:05d}.json" not in done)
        with BatchProgress(verb, "files", total, total - n_done, done=n_done) as bar:
            for _ in pool.run(function, todo):
                bar.advance(1)

    def _result(self, folder: str, task: Task) -> dict[str, Any]:
        name = result_name(folder, task.number)
        data = self._work.read(name)
        if data is None:
            raise DataError(f"{self._work.address}/{name}: the file is missing. Run again.")
        result: dict[str, Any] = json.loads(data)
        return result

    def _tokenizer(self, pool: Pool, n_chunks: Sequence[int]) -> bytes:
        """Returns the tokenizer's file, which is trained where it does not exist."""
        if (model := self._work.read(token_store.TOKENIZER)) is not None:
            return model
        options = self._config.tokenizer
        with shard_tasks.scratch() as disk:
            path = disk / token_store.TOKENIZER
            if options.file:
                path.write_bytes(tokenizer_file(self._config))
            else:
                chosen = tokenizer_sample.choose(n_chunks)
                results = {
                    shard: self._result(shard_tasks.SURVEYS, self._tasks[shard])["text_bytes"]
                    for shard in dict.fromkeys(shard for shard, _ in chosen)
                }
                sizes = [results[shard][i] for shard, i in chosen]
                budgets = tokenizer_sample.divide(sizes, options.sample_bytes)
                places = zip(chosen, budgets, strict=True)
                samples = [
                    Sample(self._tasks[shard], tuple((i, budget) for (_, i), budget in group))
                    for shard, group in itertools.groupby(places, lambda place: place[0][0])
                ]
                counts: collections.Counter[str] = collections.Counter()
                with BatchProgress("sampling", "files", len(samples), len(samples)) as bar:
                    for _, words in pool.run(shard_tasks.count_words, samples):
                        counts.update(words)  # in any order: they are summed
                        bar.advance(1)
                train_from_counts(counts, vocab_size=options.vocab_size, path=path)
            self._work.upload(path, token_store.TOKENIZER)
            return path.read_bytes()

    def _compare(self, n_usable: Sequence[int]) -> int:
        """Writes which texts are in val and which repeat; returns how many are distinct."""
        if (done := self._work.read("compared.json")) is not None:
            n_distinct: int = json.loads(done)["n_distinct"]
            return n_distinct
        with shard_tasks.scratch() as disk:

            def hashes() -> Iterator[tuple[np.ndarray, np.ndarray]]:
                for task in self._tasks:
                    name = shard_tasks.hashes_name(task.number)
                    self._work.download(name, disk / "hashes")
                    records = np.fromfile(disk / "hashes", shard_tasks.HASH)
                    yield records["text_hash"], records["val"]

            found = duplicates.find(hashes(), sum(n_usable), disk)
            self._work.write(shard_tasks.VAL_HASHES, found.val_hashes.tobytes())
            if self._config.data.drop_duplicates:
                ends = list(itertools.accumulate(n_usable, initial=0))
                for i, (start, stop) in enumerate(itertools.pairwise(ends)):
                    name = f"{shard_tasks.REPEATS}/{i:05d}"
                    self._work.write(name, found.repeats[start:stop].tobytes())
        record = json.dumps({"n_distinct": found.n_distinct})
        self._work.write("compared.json", record.encode())
        return found.n_distinct

    def _write(
        self, store: Folder, surveys: Sequence[dict[str, Any]], tokenizer: bytes, n_distinct: int
    ) -> None:
        """Writes the tokenizer and the manifest, whose existence completes the store."""
        store.write(token_store.TOKENIZER, tokenizer)
        loaded = Tokenizer(tokenizer, f"{store.address}/{token_store.TOKENIZER}")
        identities = [survey["identity"] for survey in surveys]
        known = {s["identity"]["file"]: s["published"] for s in surveys if s["published"]}
        entries = (self._result(shard_tasks.SHARDS, task) for task in self._tasks)
        manifest = {
            "format": token_store.FORMAT,
            "sources": identities,
            "settings": self._settings,
            "tokenizer": {"hash": loaded.hash, "vocab_size": loaded.vocab_size},
            "published": known,
            **join.content(entries, n_distinct, token_store.record(tokenizer)),
        }
        store.write(token_store.MANIFEST, token_store.manifest_bytes(manifest))


def _version(name: str, file: Path | Remote) -> list[str]:
    """Returns what tells a file of a source from others, and from other versions of it."""
    if isinstance(file, Remote):
        return [name, file.path, str(file.size), file.version]
    return [name, *map(str, FileState.of(file))]


def _task_of(item: Task | Encoding) -> Task:
    return item if isinstance(item, Task) else item.task
