"""Preparation of sources of every kind: the same bytes whatever the format, workers and kills."""

import json

import pytest
from test_prepare import contents, make_config, make_rows, write_shard
from test_text_files import COMPRESS

from configs.errors import DataError
from data_pipeline import browse, encode, prepare, statistics, worker_pool
from data_pipeline.locate import locate
from data_pipeline.sources import inspection, text_files
from data_pipeline.token_store import KINDS, SPLITS, TOKENIZER, TokenStore, shard_file

ROWS = [row for row in make_rows(140) if row["text"]]


def test_the_store_of_the_bundled_shard_is_that_of_earlier_versions(store):
    """Of commit f2f0107, before there were other sources than parquet: runs resume with it."""
    assert store.path.name == "quickstart-935dc3dfd2d5"
    assert store.hash == "84c3c81dabc9f759fb19e139ee69aa3649aa78c3b962cf1b2cfc2ebda8e79e8d"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(encode, "PART_BYTES", 1)
    for module in (inspection, text_files):
        monkeypatch.setattr(module, "CHUNK_BYTES", 5000)


def write_source(folder, kind, rows=ROWS):
    """Writes `rows` as a source; returns the keys of config.data that name it."""
    folder.mkdir(parents=True, exist_ok=True)
    end = kind[kind.rindex(".") :]
    compress = COMPRESS.get(end, COMPRESS[""])
    if kind == "files.txt":
        for i, row in enumerate(rows):
            (folder / f"{i:03d}.txt").write_text(row["text"], newline="")
        return {"source": str(folder)}
    if kind.startswith("split"):
        text, keys = "<|end|>\n".join(row["text"] for row in rows), {"separator": r"<|end|>\n"}
    else:
        text, keys = "".join(json.dumps(row) + "\n" for row in rows), {}
    (folder / kind).write_bytes(compress(text.encode()))
    return {"source": str(folder / kind)} | keys


@pytest.fixture
def configure(tmp_path, store):
    """Writes a source, and returns a configuration with a tokenizer that is there."""

    def write(kind, cache_dir="stores"):
        config = make_config("", tmp_path / cache_dir)
        config.data.update(write_source(tmp_path / "source", kind))
        config.tokenizer.file = str(store.path / TOKENIZER)
        return config

    return write


KINDS_OF_TEXT = ["a.jsonl", "a.jsonl.gz", "a.json.zst", "split.txt", "split.txt.zst", "files.txt"]


@pytest.mark.parametrize("kind", KINDS_OF_TEXT)
def test_a_store_has_the_same_bytes_as_that_of_parquet(tmp_path, configure, kind):
    """With the same ids, which texts have not: these are their names and numbers."""
    config = configure(kind)
    store = TokenStore.open(prepare.prepare(config))
    ids = [row["id"] for row in ROWS]
    if kind == "files.txt":
        ids = [f"{i:03d}.txt:0" for i in range(len(ROWS))]
    elif kind.startswith("split"):
        ids = [f"{kind}:{i}" for i in range(len(ROWS))]
    rows = [{**row, "id": name} for row, name in zip(ROWS, ids, strict=True)]
    shard = write_shard(tmp_path / "a.parquet", rows)
    config.data.update({"source": str(shard), "separator": ""})
    expected = TokenStore.open(prepare.prepare(config))
    for split in SPLITS:
        for name in KINDS:
            paths = (shard_file(s.path, 0, split, name) for s in (store, expected))
            first, second = (path.read_bytes() for path in paths)
            assert first == second and first


def test_the_tokenizer_is_trained_on_the_same_text(tmp_path):
    """Where the sample is the whole text, so that it does not depend on chunks."""
    config = make_config("", tmp_path / "stores", sample_bytes=10**7)
    config.data.update(write_source(tmp_path / "source", "a.json.zst"))
    store = TokenStore.open(prepare.prepare(config))
    config.data.source = str(write_shard(tmp_path / "a.parquet", ROWS))
    assert TokenStore.open(prepare.prepare(config)).tokenizer.hash == store.tokenizer.hash


@pytest.mark.parametrize("kind", ["a.json.zst", "files.txt"])
def test_killed_and_resumed_by_any_number_of_workers(tmp_path, configure, monkeypatch, kind):
    whole = prepare.prepare(configure(kind, "whole"))
    config = configure(kind, "killed")
    left = 3
    encode_part = worker_pool.encode_part

    def killed(part):
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return encode_part(part)

    config.data.prepare_workers = 1
    with monkeypatch.context() as patch:
        patch.setattr(worker_pool, "encode_part", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(config)
    config.data.prepare_workers = 2
    made = len(list(tmp_path.glob("killed/*.partial/parts/0*")))
    assert made == 2
    assert contents(prepare.prepare(config)) == contents(whole)


def test_damage_is_listed_with_its_place(tmp_path, configure, caplog):
    config = configure("a.jsonl")
    path = tmp_path / "source" / "a.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[77] = b'{"text": "cut\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match="a.jsonl: line 78: it is no JSON.*keep_before"):
        prepare.prepare(config)
    config.data.on_corrupt = "keep_before"
    store = TokenStore.open(prepare.prepare(config))
    (damage,) = store.manifest["damaged"]
    assert (damage["file"], damage["place"], damage["documents_lost"]) == ("a.jsonl", "line 78", 1)
    assert "a.jsonl: line 78: 1 documents lost" in statistics.summary(store)
    assert "a.jsonl: line 78: 1 documents lost" in caplog.text
    assert store.manifest["usable_documents"] == len(ROWS) - 1


@pytest.mark.parametrize("kind", ["a.jsonl", "files.txt"])
def test_a_file_that_changes_while_it_is_encoded(tmp_path, configure, monkeypatch, kind):
    config = configure(kind)
    encode_part = worker_pool.encode_part
    changing = sorted((tmp_path / "source").iterdir())[-1]

    def change(part):
        changing.write_bytes(changing.read_bytes() + b"\n")
        return encode_part(part)

    monkeypatch.setattr(worker_pool, "encode_part", change)
    with pytest.raises(DataError, match=f"{changing.name}: the file changed while it was read, so"):
        prepare.prepare(config)
    assert not list((tmp_path / "stores").glob("[!.]*-*"))


def test_how_a_source_is_read_decides_its_store(configure):
    config = configure("a.jsonl")
    names = {locate(config)[0]}
    for key, value in (("id_column", "id"), ("id_column", ""), ("separator", "x")):
        changed = config.copy_and_resolve_references()
        changed.data[key] = value
        names.add(locate(changed)[0])
    assert len(names) == 4


@pytest.mark.parametrize("kind", ["a.jsonl.gz", "files.txt"])
def test_browse_names_documents_by_file_and_row(capsys, configure, kind):
    config = configure(kind)
    browse.main(config, split="val", rows=1)
    out = capsys.readouterr().out
    name = kind if kind == "a.jsonl.gz" else f"000.txt+{len(ROWS) - 1}"
    assert f"source     {name}: {len(ROWS)} documents" in out
    assert "[0:" in out and f" {name}:" in out.partition("[0:")[2]
