"""A store is compared with its hashes, and its ids with the vocabulary, once a start."""

import hashlib
import json
import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import flip_bit, with_ids

from configs.errors import DataError
from data_pipeline import token_store
from data_pipeline.token_store import MANIFEST, TokenStore
from data_pipeline.verification import Verification

NAMES = ["00000-train.tokens", "00000-val.tokens", "00000-train.lengths", "00000-val.rows"]


@pytest.fixture
def folder(store, tmp_path):
    """A copy of the session's store, to be damaged."""
    return Path(shutil.copytree(store.path, tmp_path / "store"))


@pytest.mark.parametrize("name", [*NAMES, "tokenizer.model", MANIFEST])
def test_every_flipped_bit_is_noticed(folder, name):
    rng = random.Random(name)
    path = folder / name
    for _ in range(30):
        where, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
        flip_bit(path, where, bit)
        with pytest.raises(DataError, match=rf"{name}: .*[Dd]elete the folder"):
            TokenStore.open(folder).verify()
        flip_bit(path, where, bit)
    assert TokenStore.open(folder).verify() == 7


def test_one_split_alone(folder):
    flip_bit(folder / "00000-train.tokens", 10, 3)
    assert TokenStore.open(folder).verify("val") == 3
    with pytest.raises(DataError, match="train.tokens"):
        TokenStore.open(folder).verify("train")


@pytest.mark.parametrize("size", [0, 1, 6, 2**20, 2**20 + 2, 3 * 2**20 + 6])
def test_a_file_is_read_to_its_end(tmp_path, size):
    data = bytearray(random.Random(size).randbytes(size))
    data[1::2] = bytes(size // 2)  # below 256
    data[size // 2 * 2 - 1 : size // 2 * 2] = b"\x07"[: size // 2]  # the last number
    path = tmp_path / "file"
    path.write_bytes(data)
    digest, highest = token_store._scan(path, np.dtype("<u2"))
    assert digest == hashlib.sha256(data).hexdigest()
    assert highest == max(np.frombuffer(data[: size // 2 * 2], "<u2").tolist(), default=0)


@pytest.mark.parametrize("split", ["train", "val"])
def test_ids_are_compared_with_the_vocabulary(folder, split):
    with_ids(folder, split, [511])
    TokenStore.open(folder).verify()
    with_ids(folder, split, [1, 512])
    with pytest.raises(DataError, match=f"{split}.tokens: it holds the token 512, .* only 512"):
        TokenStore.open(folder).verify()


def test_a_file_that_cannot_be_read(folder, monkeypatch):
    store = TokenStore.open(folder)
    (folder / NAMES[0]).unlink()
    with pytest.raises(DataError, match=f"{NAMES[0]}: it cannot be read .No such file"):
        store.verify()


def test_a_manifest_of_before_it_had_a_digest_is_read(folder, store):
    path = folder / MANIFEST
    text = path.read_text()
    manifest = json.loads(text)
    del manifest["sha256"]
    path.write_text(json.dumps(manifest))
    assert TokenStore.open(folder).hash == store.hash
    path.write_text(text.replace('"sha256": "', '"sha356": "'))  # the last one is its own
    with pytest.raises(DataError, match="the manifest is damaged"):
        TokenStore.open(folder)


def test_in_the_background(folder, monkeypatch):
    flip_bit(folder / NAMES[1], 5, 0)
    real, begin = TokenStore.verify, threading.Event()
    monkeypatch.setattr(TokenStore, "verify", lambda store: begin.wait(60) and real(store))
    verification = Verification(TokenStore.open(folder))
    verification.check()  # nothing is known yet
    begin.set()
    with pytest.raises(DataError, match=NAMES[1]):
        verification.wait()
    with pytest.raises(DataError, match=NAMES[1]):
        verification.check()
    flip_bit(folder / NAMES[1], 5, 0)
    Verification(TokenStore.open(folder)).wait()
