"""GPT-2's tokenizer.json: what is rejected. Its ids are compared in test_export_clients.py."""

import json
import sys

import pytest

from configs.errors import DataError
from data_pipeline import gpt2_tokenizer
from data_pipeline.tokenizer import Tokenizer

CHARACTERS = list(gpt2_tokenizer.BYTES)


def tokenizer_json(**changes) -> bytes:
    vocab = {token: i for i, token in enumerate([*CHARACTERS, "th", "the", gpt2_tokenizer.BOS])}
    spec = json.loads(gpt2_tokenizer.make_json(vocab, ["#version: 0.2", "t h", "th e", ""]))
    return json.dumps(spec | changes).encode()


def test_each_byte_has_one_character():
    """The table of Radford et al., checked at its edges and where it is the byte itself."""
    table = gpt2_tokenizer.BYTES
    assert sorted(table.values()) == list(range(256))
    assert all(table[chr(b)] == b for b in b"!~azAZ09")
    assert (table["Ā"], table["Ċ"], table["Ġ"], table["ġ"], table["Ń"]) == (0, 10, 32, 127, 173)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalizer": {"type": "NFC"}}, "normalisation"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "split text as GPT-2"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "split text as GPT-2"),
        ({"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}}, "use_regex"),
        ({"added_tokens": [{"content": "<pad>", "id": 300}]}, "gaps"),
        ({"model": {"vocab": {"a": 0}, "merges": []}}, "lacks 255 of the 256 bytes"),
        ({"model": None}, "no tokenizer.json of a GPT-2"),
        ({"model": {"vocab": {"日": 0}, "merges": []}}, "no tokenizer.json of a GPT-2|lacks"),
    ],
)
def test_unlike_tokenizers_are_rejected(changes, words):
    with pytest.raises(DataError, match=words):
        Tokenizer(tokenizer_json(**changes), "tokenizer.json")


def test_damage_is_reported():
    with pytest.raises(DataError, match=r"tokenizer\.json: this is no tokenizer\.json of a GPT-2"):
        Tokenizer(tokenizer_json()[:-10], "tokenizer.json")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"package tokenizers.*gptjax\[export\]"):
        Tokenizer(tokenizer_json())


def test_text_becomes_ids_and_bytes_again():
    pytest.importorskip("tokenizers", reason="needs the extra `export`")
    ours = Tokenizer(tokenizer_json())
    assert (ours.vocab_size, ours.bos_id, ours.token_bytes[258]) == (259, 258, 0)
    ids = ours.encode("the 日\n").tolist()
    assert ids[0] == 257 and ids[1:] == [CHARACTERS.index(c) for c in "ĠæĹ¥Ċ"]
    assert ours.decode(ids) == "the 日\n"
    assert 258 not in ours.encode(gpt2_tokenizer.BOS)
