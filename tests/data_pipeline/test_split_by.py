"""data.split_by: documents that share a value are on one side, wherever and however they are."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_prepare import make_config

from configs.errors import DataError
from data_pipeline import by_shard, encode, prepare, worker_pool
from data_pipeline.locate import locate
from data_pipeline.token_store import TokenStore

ROWS = [
    {"id": f"<{i}>", "page": f"page {i * i % 23}", "text": f"text number {i} of page {i * i % 23}"}
    for i in range(120)
]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(encode, "PART_BYTES", 1)


def write(folder, kind, rows=ROWS):
    folder.mkdir(exist_ok=True)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet", row_group_size=17)
    else:
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def configured(source, stores, **data):
    config = make_config(source, stores)
    config.data.local_dir = str(stores / "local")
    config.data.update({"split_by": "page", **data})
    return config


def validation(store, rows=ROWS):
    """Rows of the val split by hand: the first 8 bytes of sha256 as a fraction below 0.2."""
    bound = int(make_config("", "").data.val_fraction * 2**64)
    digests = [hashlib.sha256(row["page"].encode()).digest() for row in rows]
    expected = [i for i, d in enumerate(digests) if int.from_bytes(d[:8], "big") < bound]
    split = store.split("val")
    found = [int(split.doc_id(i).rpartition(":")[2]) for i in range(split.n_docs)]
    assert store.split("train").n_docs == len(rows) - len(found)
    return found, expected


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_the_split_is_a_hash_of_the_column(tmp_path, monkeypatch, kind, engine):
    monkeypatch.setattr(by_shard, "RayPool", lambda: worker_pool.Pool(1, 1))
    config = configured(write(tmp_path / "source", kind), tmp_path / "stores", engine=engine)
    store = TokenStore.open(prepare.prepare(config))
    found, expected = validation(store)
    assert found == expected and 5 < len(found) < 60
    pages = [{ROWS[i]["page"] for i in part} for part in (found, set(range(120)) - set(found))]
    assert pages[0].isdisjoint(pages[1])
    config.data.split_by = ""
    by_id = TokenStore.open(prepare.prepare(config))
    assert by_id.path != store.path and validation(by_id)[0] != found
    assert "split_by" not in by_id.manifest["settings"]  # so that older stores keep their names


def test_each_source_of_a_mixture_is_split_by_it(tmp_path):
    of_kind = {"parquet": ROWS[:80], "jsonl": ROWS[40:]}
    sources = [(str(write(tmp_path / kind, kind, rows)), 1) for kind, rows in of_kind.items()]
    config = configured("", tmp_path / "stores", mixture=tuple(sources))
    for store, rows in zip(
        prepare.prepare_all(config).sources.values(), of_kind.values(), strict=True
    ):
        found, expected = validation(store, rows)
        assert found == expected


@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "txt"])
def test_a_source_without_the_column_is_refused(tmp_path, monkeypatch, kind, engine):
    monkeypatch.setattr(by_shard, "RayPool", lambda: worker_pool.Pool(1, 1))
    source = tmp_path / "a.txt"
    source.write_text("only text")
    if kind != "txt":
        source = write(tmp_path / "source", kind)
    config = configured(source, tmp_path / "stores", split_by="chapter", engine=engine)
    words = {
        "parquet": "0 columns named 'chapter'.*--config.data.split_by",
        "jsonl": "it has no 'chapter', which data.split_by names; it has: id, page, text",
        "txt": "data.split_by = 'chapter': a.txt is a file of text, which has no columns",
    }
    with pytest.raises(DataError, match=words[kind]):
        prepare.prepare(config)
    if kind == "txt":
        with pytest.raises(DataError, match=words[kind]):
            locate(config)
