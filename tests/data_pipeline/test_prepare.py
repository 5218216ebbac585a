"""Preparation, end to end: against a naive reference, for any number of workers and bad input."""

import copy
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import base
from configs.errors import DataError, UserError
from configs.validate import leaves
from data_pipeline import duplicates, encode, prepare, statistics, tokenizer_sample, worker_pool
from data_pipeline.token_store import TokenStore, write_manifest

ROOT = Path(__file__).parents[2]
VOCAB = 300
VAL_FRACTION = 0.2
ROWS, GROUP = 260, 20
MORE = " and some more words of a text that is long enough to train a tokenizer on" * 3


def make_rows(n=ROWS, seed=0):
    """Rows with everything preparation must handle: duplicates, nulls, empty and unusual texts."""
    rng = random.Random(seed)
    words = "the of a to in cat dog house tree runs sleeps green old quickly 12 345".split()
    rows = []
    for i in range(n):
        text = " ".join(rng.choices(words, k=rng.randint(1, 60))) + rng.choice(["", "\n", "."])
        if i % 10 == 9:
            text = rows[rng.randrange(i)]["text"]  # an exact duplicate (or another null)
        if i % 50 == 7:
            text = rng.choice(["", None])
        if i == 33:
            text = "\u2581 \0 😀\r\n"
        rows.append({"id": f"<urn:uuid:{seed}-{i}>", "text": text, "token_count": i})
    return rows


def write_shard(path, rows, row_group_size=GROUP, **options):
    schema = pa.schema([("text", pa.string()), ("id", pa.string()), ("token_count", pa.int64())])
    table = pa.Table.from_pylist(rows, schema)
    pq.write_table(table, path, row_group_size=row_group_size, **options)
    return path


def make_config(shard, cache_dir, n_workers=1, **settings):
    config = base.get_config()
    config.data.source = str(shard)
    config.data.cache_dir = str(cache_dir)
    config.data.val_fraction = settings.pop("val_fraction", VAL_FRACTION)
    config.data.prepare_workers = n_workers
    config.tokenizer.vocab_size = settings.pop("vocab_size", VOCAB)
    config.tokenizer.sample_bytes = settings.pop("sample_bytes", 10_000)
    assert not settings
    return config


def contents(folder):
    """Name -> bytes of all files in a folder but lock files."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Every row group becomes a part."""
    monkeypatch.setattr(encode, "PART_BYTES", 1)


@pytest.fixture(scope="session")
def shard(tmp_path_factory):
    return write_shard(tmp_path_factory.mktemp("shard") / "000_00000.parquet", make_rows())


@pytest.fixture(scope="session")
def made(shard, tmp_path_factory):
    """A store made in one go, by one process: its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "PART_BYTES", 1)
        return prepare.prepare(make_config(shard, tmp_path_factory.mktemp("stores")))


def test_store_equals_a_naive_reference(made):
    store = TokenStore.open(made)
    tokenizer = store.tokenizer
    usable = [(i, r) for i, r in enumerate(make_rows()) if r["text"]]
    split_of = {}
    for _, row in usable:
        number = int(hashlib.sha256(row["id"].encode()).hexdigest()[:16], 16)
        split_of[row["id"]] = "val" if number < VAL_FRACTION * 2**64 else "train"
    val_texts = {row["text"] for _, row in usable if split_of[row["id"]] == "val"}
    expected = {"train": [], "val": []}
    left_out = 0
    for i, row in usable:
        split = split_of[row["id"]]
        if split == "train" and row["text"] in val_texts:
            left_out += 1
        else:
            expected[split].append((i, row))
    assert left_out > 3
    for name, rows in expected.items():
        split = store.split(name)
        assert split.n_docs == len(rows) > 20
        for doc, (i, row) in enumerate(rows):
            tokens = split.read(doc, 0, int(split.doc_lengths[doc]))
            assert tokens[0] == tokenizer.bos_id
            assert tokenizer.decode(tokens[1:]) == row["text"]
            assert tokens[1:].tolist() == tokenizer.encode(row["text"]).tolist()
            assert split.doc_id(doc) == f"000_00000.parquet:{i}"
        counts = store.manifest["splits"][name]
        n_bytes = sum(len(row["text"].encode()) for _, row in rows)
        assert counts["documents"] == split.n_docs
        assert counts["tokens"] == split.n_tokens == int(split.doc_lengths.sum())
        assert counts["tokens_without_bos"] == split.n_tokens - split.n_docs
        assert counts["bytes"] == split.n_bytes == n_bytes
        assert counts["bytes_per_token"] == pytest.approx(
            n_bytes / (split.n_tokens - split.n_docs), abs=1e-4
        )
        assert counts["gpt2_tokens"] == sum(row["token_count"] for _, row in rows)
        lengths = sorted(split.doc_lengths.tolist())
        percentiles = counts["length_percentiles"]
        assert (percentiles["0"], percentiles["100"]) == (lengths[0], lengths[-1])
        assert abs(lengths.index(percentiles["50"]) - len(lengths) / 2) < len(lengths) / 10
    texts = Counter(row["text"] for row in make_rows())
    skipped = store.manifest["skipped"]
    assert skipped == {
        "null_text": texts[None],
        "null_id": 0,
        "empty_text": texts[""],
        "invalid_utf8": 0,
        "duplicate_of_val": left_out,
    }
    assert texts[None] and texts[""]
    assert store.manifest["usable_documents"] == len(usable)
    assert store.manifest["exact_duplicates"] == len(usable) - len({r["text"] for _, r in usable})
    train, val = ({r["text"] for _, r in expected[s]} for s in ("train", "val"))
    assert not train & val
    store.verify()


@pytest.mark.parametrize("at_once", [duplicates.AT_ONCE, 5])
def test_duplicates_are_dropped_across_files_and_buckets(shard, tmp_path, monkeypatch, at_once):
    """The first of each text stays, in its split; val goes before train."""
    monkeypatch.setattr(duplicates, "AT_ONCE", at_once)
    rows = make_rows()
    (tmp_path / "shards").mkdir()
    for i, cut in enumerate((slice(90), slice(90, 200), slice(200, None))):
        write_shard(tmp_path / "shards" / f"{i}.parquet", rows[cut])
    config = make_config(tmp_path / "shards", tmp_path)
    kept = TokenStore.open(prepare.prepare(config))
    config.data.drop_duplicates = True
    store = TokenStore.open(prepare.prepare(config))
    assert store.path.name != kept.path.name
    assert store.manifest["settings"] == kept.manifest["settings"] | {"drop_duplicates": True}
    is_val = [encode.is_val(row["id"], VAL_FRACTION) for row in rows]
    seen, expected = set(), {"train": [], "val": []}
    for val in (True, False):
        for i, row in enumerate(rows):
            if row["text"] and is_val[i] == val and row["text"] not in seen:
                seen.add(row["text"])
                expected["val" if val else "train"].append(i)
    for name, numbers in expected.items():
        split = store.split(name)
        places = [split.doc_id(doc).split(".parquet:") for doc in range(split.n_docs)]
        assert [int(row) + (0, 90, 200)[int(file)] for file, row in places] == numbers
    skipped = dict(store.manifest["skipped"])
    dropped = skipped.pop("duplicate")
    assert skipped == kept.manifest["skipped"]
    assert dropped + skipped["duplicate_of_val"] == store.manifest["exact_duplicates"]
    assert store.manifest["exact_duplicates"] == kept.manifest["exact_duplicates"] > dropped > 0
    assert f"{dropped} duplicate" in statistics.summary(store)


def test_folder_holds_the_store_and_nothing_else(made):
    assert [p.name for p in made.parent.iterdir() if p != made] == [f".{made.name}.lock"]
    names = {p.name for p in made.iterdir()}
    assert names == {"manifest.json", *json.loads((made / "manifest.json").read_text())["files"]}


def test_store_is_the_same_for_any_number_of_workers_and_size_of_parts(
    made, shard, tmp_path, monkeypatch
):
    assert contents(prepare.prepare(make_config(shard, tmp_path / "3", 3))) == contents(made)
    monkeypatch.setattr(encode, "PART_BYTES", 5000)
    assert contents(prepare.prepare(make_config(shard, tmp_path / "1", 1))) == contents(made)
    assert len({made.name, *(p.name for p in tmp_path.glob("*/0*"))}) == 1


def test_store_is_the_same_for_any_layout_of_the_shard(shard, tmp_path):
    """Row groups, compression and column order are not content (but the tokenizer's sample is)."""
    everything = 10**9
    one = prepare.prepare(make_config(shard, tmp_path, sample_bytes=everything))
    other = write_shard(
        tmp_path / shard.name, make_rows(), 77, compression="zstd", use_dictionary=False
    )
    two = prepare.prepare(make_config(other, tmp_path, sample_bytes=everything))
    assert one.name != two.name
    a, b = contents(one), contents(two)
    assert a.pop("manifest.json") != b.pop("manifest.json")
    assert a == b


def test_complete_store_is_used_again(made, shard, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the store was prepared twice")

    monkeypatch.setattr(prepare, "_make", fail)
    stamps = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    for n_workers in (0, 1, 5):
        assert prepare.prepare(make_config(shard, made.parent, n_workers)) == made
    assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == stamps


def test_a_complete_store_is_found_by_its_hash_without_its_source(shard, tmp_path):
    config = make_config(shard, tmp_path)
    store = TokenStore.open(prepare.prepare(config))
    other = TokenStore.open(prepare.prepare(make_config(shard, tmp_path, val_fraction=0.3)))
    config.data.source = "gone.parquet"
    assert prepare.prepared(config, store.hash).path == store.path
    assert prepare.prepared(config, other.hash) is None  # of other settings
    assert prepare.prepared(config, "0" * 64) is None
    (other.path / "manifest.json").write_text("{")  # a damaged one beside it
    assert prepare.prepared(config, store.hash).path == store.path
    store.path.rename(f"{store.path}.partial")  # being made
    assert prepare.prepared(config, store.hash) is None


@pytest.mark.parametrize(
    "settings", [{"val_fraction": 0.3}, {"vocab_size": VOCAB - 1}, {"sample_bytes": 9_999}]
)
def test_other_settings_make_another_store(made, shard, settings):
    before = contents(made)
    other = prepare.prepare(make_config(shard, made.parent, **settings))
    assert other != made and other.parent == made.parent
    store = TokenStore.open(other)
    assert store.manifest["settings"] == TokenStore.open(made).manifest["settings"] | settings
    assert store.hash != TokenStore.open(made).hash
    assert contents(made) == before


def test_another_shard_of_the_same_name_makes_another_store(made, tmp_path):
    shard = write_shard(tmp_path / "000_00000.parquet", make_rows(seed=1))
    assert prepare.prepare(make_config(shard, made.parent)) != made


def test_damaged_store_is_an_error_not_a_silent_rebuild(shard, tmp_path):
    store = prepare.prepare(make_config(shard, tmp_path))
    (store / "00000-val.tokens").write_bytes(b"")
    with pytest.raises(DataError, match=r"00000-val.tokens: the file has 0 bytes.*Delete"):
        prepare.prepare(make_config(shard, tmp_path))


def test_store_of_other_settings_is_rejected(shard, tmp_path):
    store = prepare.prepare(make_config(shard, tmp_path))
    manifest = TokenStore.open(store).manifest
    manifest["settings"]["val_fraction"] = 0.7
    write_manifest(store, manifest)
    with pytest.raises(DataError, match=r"settings.val_fraction: 0.7 saved, 0.2 now"):
        prepare.prepare(make_config(shard, tmp_path))


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, float("nan")])
def test_impossible_val_fraction(shard, tmp_path, value):
    with pytest.raises(UserError, match=r"data.val_fraction = .* must be in \(0, 1\)"):
        prepare.prepare(make_config(shard, tmp_path, val_fraction=value))


@pytest.mark.parametrize(
    ("value", "remedy"),
    [(1e-9, "'val'. Raise it with --config.data.val_fraction"), (1 - 1e-9, "'train'. Lower it")],
)
def test_empty_split(shard, tmp_path, value, remedy):
    # With everything in val there is no text for the tokenizer, which is reported first.
    with pytest.raises(DataError, match=remedy if value < 0.5 else "holds no words"):
        prepare.prepare(make_config(shard, tmp_path, val_fraction=value))


def test_damaged_row_group_stops_with_its_place_and_is_resumed_when_repaired(tmp_path, monkeypatch):
    monkeypatch.setattr(
        tokenizer_sample, "MAX_PLACES", 3
    )  # the tokenizer's sample misses the damage
    shard = write_shard(tmp_path / "000_00000.parquet", make_rows())
    whole = shard.read_bytes()
    stat = shard.stat()
    offset = pq.ParquetFile(shard).metadata.row_group(7).column(0).data_page_offset
    shard.write_bytes(whole[:offset] + b"\xff" * 16 + whole[offset + 16 :])
    for n_workers in (1, 2):
        config = make_config(shard, tmp_path / "stores", n_workers)
        with pytest.raises(DataError, match="000_00000.parquet: row group 7, column 'text'"):
            prepare.prepare(config)
    left = next((tmp_path / "stores").glob("*.partial"))
    assert len(list(left.glob("parts/00000-*"))) >= 7
    assert not list(left.rglob("*.tmp"))
    shard.write_bytes(whole)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    unbroken = prepare.prepare(make_config(shard, tmp_path / "unbroken"))
    assert contents(prepare.prepare(config)) == contents(unbroken)


def test_keep_before_keeps_what_precedes_the_damage_and_reports_the_loss(
    tmp_path, caplog, monkeypatch
):
    rows = [{"id": f"{i}", "text": f"{i:03d} word{MORE}", "token_count": 1} for i in range(120)]
    shard = write_shard(
        tmp_path / "a.parquet",
        rows,
        40,
        use_dictionary=False,
        data_page_size=1000,
        write_batch_size=5,
        write_page_checksum=True,
        compression="none",
    )
    data = shard.read_bytes()
    shard.write_bytes(data.replace(b"063 word", b"063 ward"))  # one letter of row group 1
    with pytest.raises(DataError, match=r"a.parquet: row group 1, column 'text'.*keep_before"):
        prepare.prepare(make_config(shard, tmp_path))
    stores = []
    for n_workers, name in ((1, "1"), (2, "2")):
        config = make_config(shard, tmp_path / name, n_workers)
        config.data.on_corrupt = "keep_before"
        with caplog.at_level("WARNING"):
            stores.append(prepare.prepare(config))
            assert prepare.prepare(config) == stores[-1]
        assert caplog.text.count("DAMAGED SOURCE") == 2  # each time it is used
        assert "a.parquet: row group 1, column 'text': 20 documents lost" in caplog.text
        caplog.clear()
    assert contents(stores[0]) == contents(stores[1])
    store = TokenStore.open(stores[0])
    (damage,) = store.manifest["damaged"]
    assert {k: damage[k] for k in ("file", "place", "documents_lost")} == {
        "file": "a.parquet",
        "place": "row group 1, column 'text'",
        "documents_lost": 20,
    }
    with (
        monkeypatch.context() as patch
    ):  # killed before the end, and the file is repaired meanwhile
        patch.setattr(encode, "join_parts", Mock(side_effect=KeyboardInterrupt))
        config = make_config(shard, tmp_path / "repaired", 1)
        config.data.on_corrupt = "keep_before"
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(config)
    shard.write_bytes(data)
    repaired = TokenStore.open(prepare.prepare(config))
    assert repaired.manifest["damaged"] == [] and repaired.manifest["usable_documents"] == 120

    kept = set()
    for name in ("train", "val"):
        split = store.split(name)
        kept |= {int(split.doc_id(i).rpartition(":")[2]) for i in range(split.n_docs)}
    assert kept == {*range(60), *range(80, 120)}
    assert "DAMAGED    a.parquet: row group 1" in statistics.summary(store)


def test_on_damage_is_one_of_two(shard, tmp_path):
    config = make_config(shard, tmp_path)
    config.data.on_corrupt = "ignore"
    with pytest.raises(
        UserError, match="data.on_corrupt = 'ignore' must be one of stop, keep_before"
    ):
        prepare.prepare(config)


def test_a_folder_of_shards_is_one_store_in_the_order_of_names(shard, tmp_path):
    rows = make_rows()
    folder = tmp_path / "shards"
    folder.mkdir()
    cuts = {"b.parquet": rows[90:200], "a.parquet": rows[:90], "c.parquet": rows[200:]}
    for name, part in cuts.items():
        write_shard(folder / name, part)
    everything = {"sample_bytes": 10**9}
    many = prepare.prepare(make_config(folder, tmp_path, 2, **everything))
    one = prepare.prepare(make_config(shard, tmp_path, **everything))
    assert many.name.startswith("a+2-")
    a, b = TokenStore.open(many), TokenStore.open(one)
    assert [source["file"] for source in a.manifest["sources"]] == sorted(cuts)
    for key in ("splits", "skipped", "exact_duplicates", "usable_documents", "tokenizer"):
        assert a.manifest[key] == b.manifest[key], key  # duplicates across files are noticed, too
    for name in ("train", "val"):
        x, y = a.split(name), b.split(name)
        assert x.doc_lengths.tolist() == y.doc_lengths.tolist()
        for i, n in enumerate(x.doc_lengths):
            assert x.read(i, 0, n).tolist() == y.read(i, 0, n).tolist()
            file, row = x.doc_id(i).split(":")
            assert cuts[file][int(row)] == rows[int(y.doc_id(i).rpartition(":")[2])]

    (folder / "a.parquet").rename(folder / "d.parquet")  # other names, another order: another store
    assert prepare.prepare(make_config(folder, tmp_path, **everything)).name.startswith("b+2-")
    (folder / "c.parquet").write_bytes(b"404")
    with pytest.raises(DataError, match="c.parquet: this is not a parquet file"):
        prepare.prepare(make_config(folder, tmp_path))


def test_content_hash_is_of_the_usable_texts(shard, tmp_path):
    everything = {"sample_bytes": 10**9}
    again = write_shard(tmp_path / "x.parquet", make_rows(), 77, compression="zstd")
    other_rows = make_rows()
    other_rows[5]["text"] += "!"
    other = write_shard(tmp_path / "y.parquet", other_rows)
    hashes = []
    for source in (shard, again, other):
        store = TokenStore.open(prepare.prepare(make_config(source, tmp_path, **everything)))
        hashes.append(store.manifest["pieces"][0]["content_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_damage_in_the_sample_of_the_tokenizer_names_its_place(tmp_path):
    shard = write_shard(tmp_path / "a.parquet", make_rows())
    offset = pq.ParquetFile(shard).metadata.row_group(12).column(0).data_page_offset
    with shard.open("r+b") as f:
        f.seek(offset)
        f.write(b"\xff" * 16)
    with pytest.raises(DataError, match="a.parquet: row group 12, column 'text'"):
        prepare.prepare(make_config(shard, tmp_path))


@pytest.mark.parametrize("on_corrupt", ["stop", "keep_before"])
@pytest.mark.parametrize(
    ("module", "name"), [(worker_pool, "encode_part"), (tokenizer_sample, "count_place")]
)
def test_shard_that_changes_while_it_is_read(tmp_path, monkeypatch, module, name, on_corrupt):
    shard = write_shard(tmp_path / "a.parquet", make_rows())
    function = getattr(module, name)

    def change_then_continue(item):
        write_shard(shard, make_rows(seed=5)[:-1])
        return function(item)

    monkeypatch.setattr(module, name, change_then_continue)
    config = make_config(shard, tmp_path / "stores")
    config.data.on_corrupt = on_corrupt
    with pytest.raises(DataError, match="changed while it was read.*run again"):
        prepare.prepare(config)
    assert not list((tmp_path / "stores").glob("*a-*"))[1:]  # the lock alone


def test_help_suffices():
    command = [sys.executable, "-m", "data_pipeline.prepare", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "\n  --config: " in done.stdout
    assert "gptjax prepare quickstart" in done.stdout
    listed = set(re.findall(r"(?<= )((?:data|tokenizer)\.\w+)=", done.stdout))
    known = {name for name in leaves(base.get_config()) if name.startswith(("data.", "tokenizer."))}
    assert listed == known


def test_command_line_prints_a_summary_of_the_store(shard, tmp_path):
    command = [sys.executable, "-m", "data_pipeline.prepare", "--config=configs/debug.py"]
    options = {
        "data.source": shard,
        "data.cache_dir": tmp_path,
        "data.val_fraction": VAL_FRACTION,
        "data.prepare_workers": 2,
        "tokenizer.vocab_size": VOCAB,
    }
    command += [f"--config.{key}={value}" for key, value in options.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    manifest = TokenStore.open(next(tmp_path.glob("000*"))).manifest
    for name in ("train", "val"):
        counts = manifest["splits"][name]
        assert f"{counts['documents']:,} documents, {counts['tokens']:,} tokens" in done.stdout
        assert f"GPT-2 needs {counts['gpt2_tokens']:,}" in done.stdout
    assert f"{manifest['skipped']['duplicate_of_val']} duplicate_of_val" in done.stdout
    command[-5] = f"--config.data.source={tmp_path / 'nothing'}"
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "HuggingFaceFW/fineweb" in done.stderr


def test_a_store_that_is_required_is_not_made(store, debug_config, tmp_path):
    assert prepare.require(debug_config) == store.path
    config = copy.deepcopy(debug_config)
    config.data.cache_dir = str(tmp_path / "stores")
    with pytest.raises(DataError, match="no token store.*gptjax prepare"):
        prepare.require(config)
    assert not (tmp_path / "stores").exists()
