"""Llama 2's kind of SentencePiece model, which puts a space in front of each text: ids of its own
library, and of Hugging Face's on what is exported."""

import io
import json

import numpy as np
import pytest
import sentencepiece as spm
from helpers import HOSTILE

from configs.errors import DataError
from data_pipeline import byte_level
from data_pipeline.chat import MARKERS, Chat, Message
from data_pipeline.special_tokens import with_specials
from data_pipeline.tokenizer import SPACE, Tokenizer
from gptjax.compat import hf_tokenizer
from gptjax.import_hf import _tokenizer

TEXTS = [
    "the cat sat on the mat.\n",
    "  two  spaces and 1234 digits",
    "é ñ 漢字 🙂",
    "it's the end",
]


def trained(**changes) -> bytes:
    model = io.BytesIO()
    options = {
        "model_type": "bpe",
        "vocab_size": 340,
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
    } | changes
    texts = iter(TEXTS * 20)
    spm.SentencePieceTrainer.train(sentence_iterator=texts, model_writer=model, **options)
    return model.getvalue()


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def sp(model):
    processor = spm.SentencePieceProcessor()
    processor.load_from_serialized_proto(model)
    return processor


def test_ids_are_those_of_sentencepiece(model, sp):
    tokenizer = Tokenizer(model)
    assert (tokenizer.prefix, tokenizer.bos_id, sp.eos_id()) == (" ", 1, 2)
    assert tokenizer.specials == {"<s>": 1, "</s>": 2} and tokenizer.ends == {1, 2}
    long = "the cat " * 50_000  # several slices: a space in front of the first one only
    for text in [*TEXTS, *HOSTILE, long]:
        ids = tokenizer.encode(text)
        if SPACE not in text:  # which theirs makes a space
            assert ids.tolist() == sp.encode(text), text[:50]
        assert tokenizer.decode(ids) == (f" {text}" if text else "")


def test_hugging_faces_library_gives_the_same_ids(model):
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra `export`")
    tokenizer = Tokenizer(model)
    spec = hf_tokenizer.tokenizer_json(tokenizer)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(spec))
    for text in [*TEXTS, *(text for text in HOSTILE if text)]:
        ids = tokenizer.encode(text).tolist()
        assert theirs.encode(text).ids == [1, *ids], text
        assert theirs.decode(ids) == text
    names = hf_tokenizer.tokenizer_config(tokenizer, 8)
    assert (names["bos_token"], names["eos_token"], names["pad_token"]) == ("<s>", "</s>", "<unk>")
    assert hf_tokenizer.generation_config(tokenizer)["eos_token_id"] == [1, 2]


def test_a_chat_of_such_a_model(model):
    tokenizer = Tokenizer(with_specials(model, MARKERS))
    assert tokenizer.prefix == " " and tokenizer.vocab_size == Tokenizer(model).vocab_size + 2
    ids = np.array(Chat(tokenizer).encode([Message("user", "the"), Message("assistant", "cat")]))
    counted = ids[Chat(tokenizer).counted(ids)]
    assert tokenizer.decode(counted[:-1]) == "cat"
    assert counted[-1] == tokenizer.specials["<|im_end|>"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "unigram", "vocab_size": 290}, "it is no BPE"),
        ({"byte_fallback": False, "vocab_size": 80}, "it lacks byte pieces"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it changes text"),
        ({"bos_id": 0, "unk_id": 1}, "special ids"),
    ],
)
def test_other_models_are_refused(changes, words):
    with pytest.raises(DataError, match=words):
        Tokenizer(trained(**changes))


def test_the_first_tokenizer_that_can_be_used_is_imported(model, tmp_path):
    """Llama 3 has a tokenizer.model that is no SentencePiece model."""
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(DataError, match=r"tokenizer\.model: this is not a SentencePiece model"):
        _tokenizer(tmp_path)
    pytest.importorskip("tokenizers", reason="needs the extra `export`")
    vocab = {token: i for i, token in enumerate([*byte_level.BYTES, byte_level.BOS])}
    (tmp_path / "tokenizer.json").write_bytes(byte_level.make_json(vocab, []))
    assert _tokenizer(tmp_path)[1].vocab_size == 257
    (tmp_path / "tokenizer.model").write_bytes(model)
    assert _tokenizer(tmp_path)[1].vocab_size == 340
