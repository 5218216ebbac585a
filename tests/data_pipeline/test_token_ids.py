"""Vocabularies over 65,536: stores of 32-bit ids, from preparation to what a model reads."""

import itertools
import json

import numpy as np
import pytest
from test_prepare import make_config, write_shard

from configs import debug
from data_pipeline import byte_level, prepare
from data_pipeline.token_ids import token_dtype
from data_pipeline.token_store import TokenStore, file_record, write_manifest
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from gptjax.evaluate.text_loss import Texts

WIDE = 70_000
PAIRS = [chr(0x4E00 + i // 300) + chr(0x4E00 + i % 300) for i in range(WIDE)]
N_ROWS = 120


def sentencepiece_model(folder):
    """A model of the bytes, some pieces and WIDE pairs of characters.

    A serialised protobuf followed by further elements of a repeated field holds them all.
    """
    train_tokenizer(["some words to train on, and a few more"], vocab_size=280, path=folder / "m")
    more = []
    for i, pair in enumerate(PAIRS):
        piece = b"\x0a" + bytes([len(pair.encode())]) + pair.encode()
        piece += b"\x15" + np.float32(-1000 - i).tobytes() + b"\x18\x01"
        more.append(b"\x0a" + bytes([len(piece)]) + piece)
    return (folder / "m").read_bytes() + b"".join(more)


def byte_level_json(_):
    """GPT-2's tokenizer.json with all pairs of bytes, and some of three."""
    pytest.importorskip("tokenizers", reason="needs the extra `export`")
    characters = list(byte_level.BYTES)
    pairs = list(itertools.product(characters, characters))
    pairs += [("".join(pairs[i]), characters[0]) for i in range(WIDE - len(pairs))]
    vocab = {token: i for i, token in enumerate([*characters, *map("".join, pairs)])}
    return byte_level.make_json(vocab | {byte_level.BOS: len(vocab)}, map(" ".join, pairs))


@pytest.mark.parametrize(
    "make", [pytest.param(sentencepiece_model, marks=pytest.mark.slow), byte_level_json]
)
def test_a_store_of_a_large_vocabulary_holds_every_id(tmp_path, make):
    rng = np.random.default_rng(0)
    texts = [
        " ".join([*(PAIRS[i] for i in rng.integers(0, WIDE, 5)), "words\u00ff\u017f"])
        for _ in range(N_ROWS)
    ]
    texts[40:50] = texts[:10]  # some documents are dropped, so that copying runs is seen, too
    rows = [{"id": str(i), "text": text, "token_count": 1} for i, text in enumerate(texts)]
    config = make_config(write_shard(tmp_path / "a.parquet", rows), tmp_path)
    config.tokenizer.file = str(tmp_path / "tokenizer")
    (tmp_path / "tokenizer").write_bytes(make(tmp_path))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    assert tokenizer.vocab_size > WIDE and tokenizer.dtype == np.uint32

    store = TokenStore.open(prepare.prepare(config))
    highest = 0
    for name in ("train", "val"):
        split = store.split(name)
        for doc, length in enumerate(split.doc_lengths):
            tokens = split.read(doc, 0, length)
            text = texts[int(split.doc_id(doc).rpartition(":")[2])]
            assert tokens[0] == tokenizer.bos_id and tokenizer.decode(tokens[1:]) == text
            highest = max(highest, tokens.max())
        size = (store.path / f"00000-{name}.tokens").stat().st_size
        assert size == 4 * split.n_tokens == 4 * split.doc_lengths.sum()
    assert store.manifest["skipped"]["duplicate_of_val"] > 0
    assert highest >= 1 << 16
    documents = Texts([text.encode() for text in texts], tokenizer)
    assert tokenizer.decode(documents.read(0, 1, documents.doc_lengths[0])) == texts[0]
    assert documents.read(0, 0, 1) == tokenizer.bos_id

    store.verify()
    path = store.path / "00000-val.tokens"
    tokens = np.fromfile(path, "<u4")
    tokens[-1] = tokenizer.vocab_size
    tokens.tofile(path)
    manifest = json.loads((store.path / "manifest.json").read_text())
    manifest["files"][path.name] = file_record(path)
    write_manifest(store.path, manifest)
    with pytest.raises(prepare.DataError, match=f"holds the token {tokenizer.vocab_size:,}"):
        TokenStore.open(store.path).verify()


def test_ids_of_up_to_65536_take_two_bytes():
    assert token_dtype(65_536) == np.dtype("<u2") and token_dtype(65_537) == np.dtype("<u4")


@pytest.mark.slow
def test_training_more_than_65536_pieces(tmp_path):
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = [" " + "".join(letters[rng.integers(0, 26, 7)]) for _ in range(40_000)]
    tokenizer = train_tokenizer(words, vocab_size=WIDE, path=tmp_path / "m")
    assert tokenizer.vocab_size == WIDE
    text = "".join(words)
    ids = tokenizer.encode(text)
    assert ids.max() >= 1 << 16 and tokenizer.decode(ids) == text


def test_stores_made_before_this_keep_name_and_hash(store):
    """Of configs/debug.py, as made by version 2 of the recipe: users' runs name it."""
    assert debug.get_config().tokenizer.vocab_size == store.tokenizer.vocab_size == 512
    assert store.path.name == "quickstart-935dc3dfd2d5"
    assert store.hash == "84c3c81dabc9f759fb19e139ee69aa3649aa78c3b962cf1b2cfc2ebda8e79e8d"
