"""Token stores, parquet files and benchmarks."""

import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.hostile.changes import Kind, Make, put, special, text
from benchmarks.hostile.sources import Sources
from data_pipeline import statistics
from data_pipeline.locate import locate
from data_pipeline.token_store import TokenStore
from data_pipeline.tokenizer import Tokenizer
from gptjax.evaluate import benchmarks
from gptjax.evaluate.text_loss import read_texts

# ---- store


def _use_store(folder: Path, _: Sources) -> Any:
    store = TokenStore.open(folder)
    statistics.summary(store)
    statistics.damage(store.manifest)
    store.verify()
    counts = {}
    for name in ("train", "val"):
        split = store.split(name)
        split.read(0, 0, 1)
        split.doc_id(split.n_docs - 1)
        counts[name] = split.n_docs, split.n_tokens
    return counts, store.tokenizer.vocab_size


def _right_store(folder: Path, sources: Sources, result: Any) -> bool:
    for name, (n_docs, n_tokens) in result[0].items():
        lengths = np.fromfile(folder / f"00000-{name}.lengths", "<i4")
        if (len(lengths), lengths.sum()) != (n_docs, n_tokens):
            return False
    return True


_STORE_BY_HAND = {
    **special("manifest.json"),
    **special("00000-train.tokens"),
    **special("00000-val.lengths"),
    **special("tokenizer.model"),
    **{
        f"{key} = {value!r:.20}": put("manifest.json", key, value)
        for key in (
            *("format", "sources", "settings", "tokenizer", "splits", "pieces", "damaged", "files"),
            *("pieces/0/train/tokens", "pieces/0/val", "pieces/0/content_sha256", "skipped"),
            *("tokenizer/hash", "files/00000-train.tokens/size_bytes", "exact_duplicates"),
        )
        for value in (None, -1, 10**30, "\ud800", [], {}, [1], {"x": 1}, float("nan"))
    },
}

# ---- parquet


def _use_parquet(folder: Path, sources: Sources) -> Any:
    config = sources.config.copy_and_resolve_references()
    config.data.source = str(folder)
    _, shards = locate(config)
    count = 0
    for shard in shards:
        for chunk in shard.chunks:
            count += sum(1 for _ in chunk.read())
        for _ in read_texts(shard.path, 5):
            pass
    return count


def _right_parquet(folder: Path, _: Sources, count: int) -> bool:
    """By another way through the library, in which damage may be an error or kill."""
    total = 0
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path, columns=["text", "id"], use_threads=False)
        table = table.to_pylist() if table.nbytes < 1 << 28 else []
        total += sum(1 for row in table if row["id"] is not None and row["text"])
    return count <= total or not total


def table(make: Callable[[], pa.Table], **options: Any) -> Make:
    """Returns a change to a file with this table."""
    return lambda folder: pq.write_table(make(), folder / "a.parquet", **options)


def _encrypted(plain: bool) -> Make:
    def make(folder: Path) -> None:
        import pyarrow.parquet.encryption as pe

        class Client(pe.KmsClient):
            def __init__(self, _: Any) -> None:
                pe.KmsClient.__init__(self)

            def wrap_key(self, key: bytes, name: str) -> bytes:
                return key.hex().encode()

            def unwrap_key(self, key: bytes, name: str) -> bytes:
                return bytes.fromhex(key.decode())

        factory = pe.CryptoFactory(Client)
        settings = pe.EncryptionConfiguration(
            footer_key="f", column_keys={"c": ["text"]}, plaintext_footer=plain
        )
        properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), settings)
        pq.write_table(
            pa.table({"text": ["a b"] * 50, "id": ["x"] * 50}),
            folder / "a.parquet",
            encryption_properties=properties,
        )

    return make


def _dictionary() -> pa.Table:
    values = pa.array([chr(97 + i) * 20_000_000 for i in range(4)])
    column = pa.DictionaryArray.from_arrays(pa.array([i % 4 for i in range(64)]), values)
    return pa.table({"text": column, "id": ["x"] * 64})


def _long() -> pa.Table:
    return pa.table({"text": ["a" * 700_000_000], "id": ["x"]})


def _wide() -> pa.Table:
    return pa.table({f"c{i}": ["a"] for i in range(2000)} | {"text": ["a"], "id": ["b"]})


def _twice() -> pa.Table:
    return pa.Table.from_arrays([pa.array(["a"])] * 3, ["text", "id", "text"])


def _no_utf8() -> pa.Table:
    return pa.table({"text": pa.array([b"\xff"] * 9).view(pa.string()), "id": ["x"] * 9})


def _footer(content: bytes) -> Make:
    data = b"PAR1" + content + struct.pack("<I", len(content)) + b"PAR1"
    return lambda folder: (folder / "a.parquet").write_bytes(data)


def _sparse_footer(folder: Path) -> None:
    with (folder / "a.parquet").open("wb") as f:
        f.write(b"PAR1")
        f.seek(2_000_000_000)
        f.write(struct.pack("<I", 1_999_000_000) + b"PAR1")


_PARQUET_BY_HAND = {
    **special("a.parquet"),
    "encrypted column, plain footer": _encrypted(True),
    "encrypted footer": _encrypted(False),
    "dictionary of 20 MB values": table(_dictionary, compression="zstd"),
    "one text of 700 MB": table(_long, compression="zstd"),
    "no columns": table(lambda: pa.table({})),
    "nested": table(lambda: pa.table({"text": [[["a"]]] * 3, "id": ["x"] * 3})),
    "2,000 columns": table(_wide),
    "text twice": table(_twice),
    "no UTF-8": table(_no_utf8),
    "footer of zeros": _footer(bytes(1000)),
    "footer of nesting": _footer(b"\x1c" * 100_000),
    "footer of 2 GB, sparse": _sparse_footer,
}

# ---- eval


def _use_eval(folder: Path, sources: Sources) -> Any:
    files = benchmarks.find_files([folder])
    suite = benchmarks.Suite(Tokenizer.load(sources.folder / "run" / "tokenizer.model"), files)
    return {name: len(items) for name, items in suite.items.items()}, files


def _right_eval(_: Path, __: Sources, result: Any) -> bool:
    counts, files = result
    for name, paths in files.items():
        data = [(gzip.decompress if p.suffix == ".gz" else bytes)(p.read_bytes()) for p in paths]
        lines = [line for d in data for line in d.split(b"\n") if line.strip()]
        if counts[name] != len(lines) or not all(isinstance(json.loads(x), dict) for x in lines):
            return False
    return True


def line(name: str, **changes: Any) -> Make:
    """Returns a change of the second line of a file."""

    def make(folder: Path) -> None:
        path = folder / f"{name}.jsonl"
        lines = path.read_text().splitlines()
        lines[1] = json.dumps(json.loads(lines[1]) | changes)
        path.write_text("\n".join(lines))

    return make


def zipped(data: Callable[[], bytes]) -> Make:
    """Returns a change that adds a compressed file."""

    def make(folder: Path) -> None:
        (folder / "lambada_test.jsonl").unlink()
        (folder / "lambada_test.jsonl.gz").write_bytes(gzip.compress(data(), 9))

    return make


def _truncated(folder: Path) -> None:
    zipped(lambda: b'{"text": "a b"}' * 1000)(folder)
    os.truncate(folder / "lambada_test.jsonl.gz", 60)


def _with_garbage(folder: Path) -> None:
    zipped(lambda: b'{"text": "a b"}')(folder)
    with (folder / "lambada_test.jsonl.gz").open("ab") as f:
        f.write(b"xx")


_LAYOUTS = {
    "hellaswag_val": ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    "lambada_test": ("text",),
    "piqa_val": ("goal", "sol1", "label"),
    "arc_easy": ("question", "choices", "answerKey"),
    "winogrande_xs": ("sentence", "option1", "answer"),
}
_STRANGE: tuple[Any, ...] = (
    None,
    -1,
    10**30,
    1e300,
    float("nan"),
    float("inf"),
    "\ud800",
    "",
    " ",
    "\0",
    [],
    {},
)
_LISTS: tuple[Any, ...] = ([1], [[]], ["x", 3])
_EVAL_BY_HAND = {
    **special("lambada_test.jsonl"),
    "1.3 GB in 1.3 MB": zipped(lambda: b'{"text": "' + b"a " * 650_000_000 + b'b"}'),
    "300 MB of empty lines": zipped(lambda: b"\n" * 300_000_000),
    "3 million items": text("lambada_test.jsonl", '{"text":"a b"}\n' * 3_000_000),
    "truncated gz": _truncated,
    "garbage behind gz": _with_garbage,
    "a line of 70 MB": text("lambada_test.jsonl", json.dumps({"text": "a " * 35_000_000 + "b"})),
    **{
        f"{name}: {key} = {value!r:.20}": line(name, **{key: value})
        for name, keys in _LAYOUTS.items()
        for key in keys
        for value in (*_STRANGE, *_LISTS)
    },
}

STORE = Kind(lambda s: s.store, "*", _use_store, _right_store, _STORE_BY_HAND)
PARQUET = Kind(lambda s: s.folder / "parquet", "*", _use_parquet, _right_parquet, _PARQUET_BY_HAND)
EVAL = Kind(lambda s: s.folder / "eval", "*", _use_eval, _right_eval, _EVAL_BY_HAND)
