"""Byte-level BPE: what is rejected, and ids against `tokenizers` on whole texts.

Those of GPT-2 are compared with OpenAI's in test_export_clients.py.
"""

import hashlib
import json
import sys

import numpy as np
import pytest
from helpers import HOSTILE

from configs.errors import DataError, UserError
from data_pipeline import byte_level, tokenizer
from data_pipeline.tokenizer import Tokenizer
from gptjax.compat import gguf_file, hf_tokenizer

CHARACTERS = list(byte_level.BYTES)


def tokenizer_json(**changes) -> bytes:
    vocab = {token: i for i, token in enumerate([*CHARACTERS, "th", "the", byte_level.BOS])}
    spec = json.loads(byte_level.make_json(vocab, ["#version: 0.2", "t h", "th e", ""]))
    return json.dumps(spec | changes).encode()


def test_each_byte_has_one_character():
    """The table of Radford et al., checked at its edges and where it is the byte itself."""
    table = byte_level.BYTES
    assert sorted(table.values()) == list(range(256))
    assert all(table[chr(b)] == b for b in b"!~azAZ09")
    assert (table["Ā"], table["Ċ"], table["Ġ"], table["ġ"], table["Ń"]) == (0, 10, 32, 127, 173)


def with_step(*steps):
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    last["use_regex"] = False
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, last]}}


SPLIT = {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Removed", "invert": False}
BOS_TOKEN = {"content": byte_level.BOS, "id": 258}
MODEL = json.loads(tokenizer_json())["model"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalizer": {"type": "NFC"}}, 'its normalizer NFC changes text .*"normalizer" to null'),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "does not keep the bytes of text"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "keep the bytes"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
            "use_regex",
        ),
        ({"pre_tokenizer": {"type": "Sequence"}}, "sequence of nothing"),
        (with_step(SPLIT), "not of splits that keep text"),
        (with_step({"type": "Whitespace"}), "not of splits that keep text"),
        (with_step(), "use_regex"),
        ({"added_tokens": [{"content": "<pad>", "id": 300}]}, r"begins a text: <\|endoftext"),
        ({"added_tokens": [BOS_TOKEN, {"content": "<pad>", "id": 7}]}, "the same id"),
        ({"added_tokens": [BOS_TOKEN, {"content": "<pad>", "id": 1 << 20}]}, "ids reach 1,048,576"),
        ({"model": {"vocab": {"a": 0}, "merges": []}}, "lacks 255 of the 256 bytes"),
        ({"model": None}, "no tokenizer.json of a byte-level BPE"),
        ({"model": MODEL | {"vocab": {"a": "b"}}}, "no whole number"),
        ({"model": MODEL | {"merges": ["a b c"]}}, "no pair"),
        ({"model": MODEL | {"dropout": 0.1}}, "drawn at random"),
        ({"model": MODEL | {"end_of_word_suffix": "</w>"}}, "no byte-level BPE"),
        ({"model": MODEL | {"type": "Unigram"}}, "no byte-level BPE"),
        ({"model": {"vocab": {"日": 0}, "merges": []}}, "lacks"),
    ],
)
def test_unlike_tokenizers_are_rejected(changes, words):
    with pytest.raises(DataError, match=words):
        Tokenizer(tokenizer_json(**changes), "tokenizer.json")


def test_words_that_reach_over_spaces_are_rejected():
    """As SuperBPE has them: a slice could end within one."""
    pytest.importorskip("tokenizers", reason="needs the extra `export`")
    split = SPLIT | {"pattern": {"Regex": "[a-z ]+"}, "behavior": "Isolated"}
    with pytest.raises(DataError, match="its words reach over spaces, as in"):
        Tokenizer(tokenizer_json(**with_step(split)), "tokenizer.json")


def test_a_special_that_is_a_word_of_the_vocabulary_is_never_encoded():
    pytest.importorskip("tokenizers", reason="needs the extra `export`")
    split = SPLIT | {"pattern": {"String": byte_level.BOS}, "behavior": "Isolated"}
    changes = with_step(SPLIT | {"behavior": "Isolated"}, split)
    ours = Tokenizer(tokenizer_json(**changes, model=MODEL | {"ignore_merges": True}))
    text = f"the{byte_level.BOS}the"
    assert ours.encode(text).tolist() == [257, *(CHARACTERS.index(c) for c in byte_level.BOS), 257]
    assert ours.decode(ours.encode(text)) == text


def test_damage_is_reported():
    with pytest.raises(DataError, match=r"tokenizer\.json: this is no tokenizer\.json of a byte"):
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
    assert 258 not in ours.encode(byte_level.BOS)


STYLES = {name: key for key, name in gguf_file._WORDS.items()}  # the regular expressions
SPECIALS = {"llama-bpe": "<|begin_of_text|>", "qwen2": "<|endoftext|>", "gpt-4o": "<s>"}
SPECIALS |= {"smollm": "<|endoftext|>"}
PROSE = "The HTTPServer's 1,234 users didn't see 3.14\n\n\tor größere Wörter,  naïve …\n日本 x/\n/y"


@pytest.fixture(scope="module", params=SPECIALS)
def trained(request):
    """A tokenizer of the style of Llama 3, Qwen, GPT-4o or SmolLM: its name and JSON."""
    library = pytest.importorskip("tokenizers", reason="needs the extra `export`")
    pattern, ignore_merges = STYLES.get(request.param, ("", False))
    split = library.pre_tokenizers.Split(library.Regex(pattern), "isolated")
    if not pattern:
        split = library.pre_tokenizers.Digits(individual_digits=True)
    theirs = library.Tokenizer(library.models.BPE(ignore_merges=ignore_merges))
    theirs.pre_tokenizer = library.pre_tokenizers.Sequence(
        [split, library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)]
    )
    trainer = library.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=CHARACTERS, show_progress=False
    )
    theirs.train_from_iterator([PROSE, *HOSTILE], trainer)
    spec = json.loads(theirs.to_str())
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special |= {"content": SPECIALS[request.param], "id": 410, "special": True}  # with a gap
    return request.param, spec | {"added_tokens": [special]}


@pytest.mark.parametrize("max_slice", [1 << 18, 200])
def test_ids_of_slices_are_those_of_the_library_for_the_whole_text(trained, monkeypatch, max_slice):
    import tokenizers

    name, spec = trained
    monkeypatch.setattr(tokenizer, "MAX_SLICE", max_slice)
    ours = Tokenizer(json.dumps(spec).encode())
    plain = tokenizers.Tokenizer.from_str(json.dumps(spec | {"added_tokens": []}))
    assert (ours.vocab_size, ours.bos_id, ours.token_bytes[410]) == (411, 410, 0)
    rng = np.random.default_rng(0)
    words = [*PROSE.split(" "), "\n", "\n\n", "  ", "\u0301", SPECIALS[name], *map(str, range(30))]
    texts = [" ".join(rng.choice(words, 60)) for _ in range(40)]
    together = ["".join(rng.choice(words, 60)) for _ in range(40)]
    for text in [*texts, PROSE * 9, *HOSTILE, *together]:
        ids = ours.encode(text)
        if max_slice > 1000 or text not in (*HOSTILE, *together):  # without a place to cut
            assert ids.tolist() == plain.encode(text).ids, text
        assert ours.decode(ids) == text
        assert 410 not in ids


def test_how_text_is_split_is_part_of_the_hash(trained):
    _, spec = trained
    other = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    changes = [{}, {"pre_tokenizer": other | {"use_regex": True}}]
    changes += [{"added_tokens": [spec["added_tokens"][0] | {"content": "<bos>"}]}]
    model = spec["model"]
    changes += [{"model": model | {"ignore_merges": not model["ignore_merges"]}}]
    hashes = {Tokenizer(json.dumps(spec | change).encode()).hash for change in changes}
    assert len(hashes) == 4


def test_the_hash_of_a_gpt2s_tokenizer_stays():
    """Stores and checkpoints of imported models name it: of tokens, merges and specials."""
    pytest.importorskip("tokenizers", reason="needs the extra `export`")
    content = [[*CHARACTERS, "th", "the", byte_level.BOS], [["t", "h"], ["th", "e"]], [258]]
    expected = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    assert Tokenizer(tokenizer_json()).hash == expected


def test_export_says_what_llama_cpp_has_to_know(trained):
    name, spec = trained
    ours = Tokenizer(json.dumps(spec).encode())
    assert gguf_file._words_of(ours.byte_level) == name
    assert hf_tokenizer.tokenizer_json(ours) == spec
    assert hf_tokenizer.tokenizer_config(ours, 8)["bos_token"] == SPECIALS[name]
    unknown = with_step(SPLIT | {"pattern": {"Regex": r"\S+|\s+"}, "behavior": "Isolated"})
    ours = Tokenizer(json.dumps(spec | unknown).encode())
    with pytest.raises(UserError, match=r"into words by \S.*Export it with --format=hf"):
        gguf_file._words_of(ours.byte_level)
