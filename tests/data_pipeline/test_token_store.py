"""The store on disk: reading returns what was written, and damaged files are named."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from data_pipeline import encode, token_store
from data_pipeline.encode import DOCUMENT, Part, new_part
from data_pipeline.files import differences
from data_pipeline.statistics import split_statistics
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
            with new_part(path) as part_files:
                for _ in range(40):
                    split = "val" if rng.random() < 0.3 else "train"
                    tokens = [1, *rng.integers(2, 280, rng.integers(1, 30)).tolist()]
                    text_hash = rng.integers(2**64, dtype=np.uint64)
                    n_bytes = 3 * len(tokens)
                    record = (row, split == "val", len(tokens), n_bytes, text_hash, -1)
                    part_files["documents"].write(np.array(record, DOCUMENT).tobytes())
                    part_files[split].write(np.array(tokens, "<u2").tobytes())
                    naive[split].append((tokens, n_bytes, f"{shard}.parquet:{row}"))
                    row += 2
                part_files["counts.json"].write(b"{}")
        none = np.zeros(0, "<u8")
        counts = encode.join_parts(
            paths, folder, shard, val_hashes=none, repeats=None, dtype=tokenizer.dtype
        )
        assert (
            counts.pop("dropped") == {"duplicate_of_val": 0} and len(counts["content_sha256"]) == 64
        )
        shards.append({"source": f"{shard}.parquet", **counts})
        files += token_store.shard_files(folder, shard)
    manifest = {
        "format": token_store.FORMAT,
        "sources": [],
        "settings": {},
        "tokenizer": {"hash": tokenizer.hash, "vocab_size": 280},
        "splits": {
            s: split_statistics(shards, s, Counter(len(tokens) for tokens, *_ in naive[s]))
            for s in ("train", "val")
        },
        "damaged": [],
        "skipped": {},
        "exact_duplicates": 0,
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
    token_store.write_manifest(folder, manifest)


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
start = time.process_time()
splits = [TokenStore.open({str(folder)!r}).split(name) for name in ("train", "val")]
seconds = time.process_time() - start
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
    cpu_seconds = float(done.stdout)
    assert cpu_seconds < 1.0


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
    edit_manifest(folder, lambda m: m["files"]["00001-val.rows"].update(sha256="0"))
    other = TokenStore.open(folder)  # of the same content, written by other versions of libraries
    assert other.hash != store.hash and other.identity == store.identity
    edit_manifest(folder, lambda m: m["tokenizer"].update(hash="0"))
    assert TokenStore.open(folder).identity != store.identity


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
        with pytest.raises(DataError, match="no token store.*gptjax prepare"):
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


def test_failed_part_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), new_part(tmp_path / "part") as files:
        files["val"].write(b"ab")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_part_that_another_process_has_written_stays(tmp_path):
    with new_part(tmp_path / "part") as files:
        files["val"].write(b"ab")
        (tmp_path / "part").mkdir()
        (tmp_path / "part" / "val").write_bytes(b"other")
    assert (tmp_path / "part" / "val").read_bytes() == b"other"
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def copy_kept(tmp_path, documents, keep):
    lengths = np.array([len(d) for d in documents], "<i4")
    mask = np.array([c == "1" for c in keep], bool)
    with (tmp_path / "out").open("wb") as target:
        encode._copy_kept(tmp_path / "in", target, 2 * lengths, mask)
    return np.fromfile(tmp_path / "out", "<u2").tolist()


@pytest.mark.parametrize("keep", ["", "1", "0", "1111", "0000", "0110", "1001", "0101", "1011"])
def test_copying_kept_documents(tmp_path, keep):
    documents = [[7], [8, 8, 8], [9, 9], [5, 5, 5, 5]][: len(keep)]
    np.array([t for d in documents for t in d], "<u2").tofile(tmp_path / "in")
    expected = [t for d, k in zip(documents, keep, strict=True) if k == "1" for t in d]
    assert copy_kept(tmp_path, documents, keep) == expected


@pytest.mark.parametrize("n_bytes", [0, 5])
def test_a_part_that_is_too_short_is_named(tmp_path, n_bytes):
    (tmp_path / "in").write_bytes(bytes(n_bytes))
    with pytest.raises(DataError, match="in: the part is shorter than its index says"):
        copy_kept(tmp_path, [[7], [8, 8]], "11")
