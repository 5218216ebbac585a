"""The store on disk: reading returns what was written, and damaged files are named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from data_pipeline import encode, token_store
from data_pipeline.encode import Part, PartWriter
from data_pipeline.files import differences
from data_pipeline.token_store import TokenStore
from data_pipeline.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
SHARDS = 3


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A store of three shards of random documents, and the same as lists: (folder, {split: docs}).

    A document is (tokens with BOS, bytes, "file:row").
    """
    folder = tmp_path_factory.mktemp("store") / "a-0123"
    folder.mkdir()
    words = "some words to train a very small tokenizer on, and a few more"
    tokenizer = train_tokenizer([words], vocab_size=280, path=folder / token_store.TOKENIZER)
    rng = np.random.default_rng(0)
    naive = {"train": [], "val": []}
    shards, files = [], [folder / token_store.TOKENIZER]
    for shard in range(SHARDS):
        paths = []
        row = 0
        for part in range(2):
            path = folder.parent / f"{shard}-{part}"
            paths.append(Part(path, folder, (), 0, folder, 0.0))
            with PartWriter(path, 1) as writer:
                for _ in range(40):
                    is_val = bool(rng.random() < 0.3)
                    tokens = rng.integers(2, 2**16, rng.integers(1, 30)).astype("<u2")
                    text_hash = int(rng.integers(2**64, dtype=np.uint64))
                    writer.add(
                        [tokens[:3].tobytes(), tokens[3:].tobytes()],
                        row=row,
                        is_val=is_val,
                        n_bytes=3 * len(tokens),
                        text_hash=text_hash,
                        gpt2_tokens=-1,
                    )
                    document = ([1, *tokens.tolist()], 3 * len(tokens), f"{shard}.parquet:{row}")
                    naive["val" if is_val else "train"].append(document)
                    row += 2
        none = np.array([], np.uint64)
        counts = encode.join_parts(paths, folder, shard, val_hashes=none)
        assert counts.pop("duplicate_of_val") == 0 and len(counts["content_sha256"]) == 64
        shards.append({"source": f"{shard}.parquet", **counts})
        files += token_store.shard_files(folder, shard)
    manifest = {
        "format": token_store.FORMAT,
        "sources": [],
        "settings": {},
        "tokenizer": {"hash": tokenizer.hash, "vocab_size": 280},
        "splits": {},
        "damaged": [],
        "pieces": shards,
        "files": {path.name: token_store.file_record(path) for path in files},
    }
    token_store.write_manifest(folder, manifest)
    return folder, naive


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the store, to be damaged."""
    return shutil.copytree(made[0], tmp_path / made[0].name)


def edit_manifest(folder, edit):
    path = folder / token_store.MANIFEST
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["train", "val"])
def test_split_reads_what_was_written(made, name):
    folder, naive = made
    split = TokenStore.open(folder).split(name)
    documents = naive[name]
    assert split.n_docs == len(documents)
    assert split.n_tokens == sum(len(tokens) for tokens, *_ in documents)
    assert split.n_bytes == sum(n_bytes for _, n_bytes, _ in documents)
    assert split.doc_lengths.tolist() == [len(tokens) for tokens, *_ in documents]
    for i, (tokens, _, where) in enumerate(documents):
        read = split.read(i, 0, len(tokens))
        assert read.dtype == np.uint16 and read.tolist() == tokens
        assert split.read(i, 1, len(tokens) - 1).tolist() == tokens[1:-1]
        assert split.read(i, 1, 1).size == 0
        assert split.doc_id(i) == where


def test_a_thousand_shards_open_fast_and_within_the_limit_of_open_files(made, tmp_path):
    """6,000 files, and an index of 12 bytes a document."""
    folder = tmp_path / "big"
    folder.mkdir()
    manifest = json.loads((made[0] / "manifest.json").read_text())
    shutil.copy(made[0] / "tokenizer.model", folder)
    record, files = manifest["files"], {"tokenizer.model": manifest["files"]["tokenizer.model"]}
    for shard in range(1000):
        for old in token_store.shard_files(made[0], 0):
            new = folder / old.name.replace("00000", f"{shard:05d}")
            new.hardlink_to(old)
            files[new.name] = record[old.name]
    manifest |= {"pieces": [manifest["pieces"][0]] * 1000, "files": files}
    token_store.write_manifest(folder, manifest)
    code = f"""
import resource, sys, time
sys.path.insert(0, {str(ROOT)!r})
from data_pipeline.token_store import TokenStore
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
start = time.monotonic()
splits = [TokenStore.open({str(folder)!r}).split(name) for name in ("train", "val")]
seconds = time.monotonic() - start
for split in splits:
    views = [split.read(doc, 0, 2).tolist() for doc in range(0, split.n_docs, 3)]
    assert all(view[0] == 1 for view in views)
    first = split.n_docs // 1000
    assert split.read(3 * first, 0, 2).tolist() == split.read(0, 0, 2).tolist()
    index = split.doc_lengths.nbytes + split._starts.nbytes
    assert index <= 12 * split.n_docs + 8, (index, split.n_docs)
print(seconds)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.0


def test_differences_name_each_leaf():
    a = {"x": {"y": 1, "z": [1, 2]}, "w": [1], "same": None}
    b = {"x": {"y": 2, "z": [1, 3]}, "w": [1, 2], "same": None, "new": 4}
    assert differences(a, a) == []
    assert differences(a, b, "data") == [
        "data.x.y: 1 saved, 2 now",
        "data.x.z.1: 2 saved, 3 now",
        "data.w: 1 saved, 2 now",
        "data.new: None saved, 4 now",
    ]


def test_reading_gives_views_that_cannot_be_written(made):
    tokens = TokenStore.open(made[0]).split("train").read(0, 0, 2)
    assert tokens.base is not None
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 0


def test_reading_outside_a_document_is_an_error(made):
    split = TokenStore.open(made[0]).split("train")
    n = int(split.doc_lengths[0])
    for doc, start, stop in [
        (0, 0, n + 1),
        (0, -1, 1),
        (0, 2, 1),
        (-1, 0, 1),
        (split.n_docs, 0, 1),
    ]:
        with pytest.raises(IndexError, match="document"):
            split.read(doc, start, stop)
    with pytest.raises(ValueError, match="test"):
        TokenStore.open(made[0]).split("test")


def test_hash_is_that_of_the_content(made, folder):
    store = TokenStore.open(made[0])
    assert TokenStore.open(folder).hash == store.hash  # whatever its folder
    edit_manifest(folder, lambda m: m.update(comment="statistics may come and go"))
    assert TokenStore.open(folder).hash == store.hash
    edit_manifest(folder, lambda m: m["tokenizer"].update(hash="0"))
    assert TokenStore.open(folder).hash != store.hash


def test_open_reads_no_tokens(made, folder):
    for file in folder.glob("*.tokens"):
        size = file.stat().st_size
        file.unlink()
        with file.open("wb") as f:  # of the right size, with holes
            f.truncate(size)
    split = TokenStore.open(folder).split("val")
    assert split.n_docs == len(made[1]["val"]) and not split.read(0, 0, 2).any()
    with pytest.raises(DataError, match="tokens: the contents have changed"):
        TokenStore.open(folder).verify()


def test_verify_accepts_an_undamaged_store(made):
    TokenStore.open(made[0]).verify()


def test_no_store(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="no token store.*data_pipeline.prepare"):
            TokenStore.open(path)


@pytest.mark.parametrize("name", ["00001-train.tokens", "00002-val.lengths", "tokenizer.model"])
@pytest.mark.parametrize("change", [-1, 2, None])
def test_short_long_and_missing_files(folder, name, change):
    path = folder / name
    size = path.stat().st_size
    if change is None:
        path.unlink()
    else:
        path.write_bytes((path.read_bytes() + b"xx")[: size + change])
    state = "is missing" if change is None else f"has {size + change:,} bytes"
    with pytest.raises(DataError, match=f"{name}: the file {state}.* {size:,} bytes.*Delete"):
        TokenStore.open(folder)


def test_lengths_that_do_not_add_up(folder):
    path = folder / "00001-val.lengths"
    path.write_bytes(path.read_bytes()[4:] + b"\x05\0\0\0")
    with pytest.raises(DataError, match=r"split 'val' add up to"):
        TokenStore.open(folder).split("val")


def test_tokenizer_of_another_store(folder):
    assert TokenStore.open(folder).tokenizer.vocab_size == 280
    edit_manifest(folder, lambda m: m["tokenizer"].update(hash="f" * 64))
    with pytest.raises(DataError, match="the store was made with ffffffffffff"):
        _ = TokenStore.open(folder).tokenizer


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"format": 2}', '{"format": 2, "files": 3}']
)
def test_damaged_manifest(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest.json: the manifest is damaged .*Delete"):
        TokenStore.open(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.update(files=[]),
        lambda m: m.update(pieces=None),
        lambda m: m["files"].pop("00002-train.rows"),
        lambda m: m["files"].update({"tokenizer.model": None}),
    ],
)
def test_manifest_with_wrong_values(folder, edit):
    edit_manifest(folder, edit)
    with pytest.raises(DataError, match=r"manifest.json: the manifest is damaged .*Delete"):
        TokenStore.open(folder)


def test_another_format(folder):
    edit_manifest(folder, lambda m: m.update(format=99))
    with pytest.raises(DataError, match="the store has format 99 and this program reads 2"):
        TokenStore.open(folder)


def test_files_outside_the_folder_are_refused(folder):
    outside = folder.parent / "secret"
    outside.write_bytes(b"12345")
    record = {"size_bytes": 5, "sha256": "0"}
    edit_manifest(folder, lambda m: m["files"].update({"../secret": record}))
    with pytest.raises(DataError, match=r"'../secret' leads out of the store folder"):
        TokenStore.open(folder)
    edit_manifest(folder, lambda m: m["files"].pop("../secret"))
    TokenStore.open(folder)
    (folder / "00000-val.tokens").unlink()
    (folder / "00000-val.tokens").symlink_to(outside)
    with pytest.raises(DataError, match=r"leads out of the store folder"):
        TokenStore.open(folder)


@pytest.mark.parametrize("flush_bytes", [1, 50, 10**6])
def test_part_is_the_same_however_often_it_is_flushed(tmp_path, monkeypatch, flush_bytes):
    monkeypatch.setattr(encode, "_FLUSH_BYTES", flush_bytes)
    with PartWriter(tmp_path / "part", 1) as writer:
        for i in range(20):
            tokens = np.arange(2, 2 + i, dtype="<u2").tobytes()
            writer.add([tokens], row=i, is_val=i % 3 == 0, n_bytes=i, text_hash=i, gpt2_tokens=i)
        writer.counts = {"null_text": 4}
    documents, counts = encode.read_part(tmp_path / "part")
    assert counts == {"null_text": 4} and documents["tokens"].tolist() == list(range(1, 21))
    train = np.fromfile(tmp_path / "part" / "train", "<u2").tolist()
    expected = [[1, *range(2, 2 + i)] for i in range(20) if i % 3]
    assert train == [token for document in expected for token in document]
    assert [p.name for p in tmp_path.iterdir()] == ["part"]


def test_failed_part_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), PartWriter(tmp_path / "part", 1) as writer:
        writer.add([b"ab"], row=0, is_val=True, n_bytes=1, text_hash=0, gpt2_tokens=-1)
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", ["", "1", "0", "1111", "0000", "0110", "1001", "0101", "1011"])
@pytest.mark.parametrize("chunk", [2, 6, 10**6])
def test_copying_kept_documents(tmp_path, monkeypatch, keep, chunk):
    monkeypatch.setattr(encode, "_COPY_BYTES", chunk)
    documents = [[7], [8, 8, 8], [9, 9], [5, 5, 5, 5]][: len(keep)]
    flat = np.array([t for d in documents for t in d], "<u2")
    (tmp_path / "in").write_bytes(flat.tobytes())
    mask = np.array([c == "1" for c in keep], bool)
    lengths = np.array([len(d) for d in documents], "<i4")
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as target:
        encode._copy_kept(source, target, lengths, mask)
    expected = [t for d, k in zip(documents, mask, strict=True) if k for t in d]
    assert np.fromfile(tmp_path / "out", "<u2").tolist() == expected
