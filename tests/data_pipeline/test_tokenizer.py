"""The tokenizer: lossless on any text, equal to SentencePiece, a function of its texts alone."""

import io
from collections import Counter

import numpy as np
import pytest
import sentencepiece as spm
from helpers import HOSTILE
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from configs.errors import DataError
from data_pipeline import tokenizer
from data_pipeline.sources import parquet
from data_pipeline.tokenizer import SPACE, StreamDecoder, Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def texts(request):
    path = request.config.rootpath / "data_pipeline/shard/quickstart.parquet"
    documents = parquet.read_row_group(path, 0)
    return [next(documents).text for _ in range(150)]


@pytest.fixture(scope="session")
def trained(texts, tmp_path_factory):
    """A tokenizer of 600 pieces, and its file."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_tokenizer(texts, vocab_size=600, path=path), path


@pytest.fixture(scope="session")
def tok(trained):
    return trained[0]


@pytest.fixture(scope="session")
def sp(trained):
    """SentencePiece itself, on the same file."""
    return spm.SentencePieceProcessor(model_file=str(trained[1]))


def check_lossless(tok, text):
    ids = tok.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tok.decode(ids) == text
    assert tok.decode_bytes(ids) == text.encode()
    assert tok.token_bytes[ids].sum() == len(text.encode())
    assert not np.isin(ids, [0, tok.bos_id]).any()
    assert not ids.size or ids.max() < tok.vocab_size


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_lossless(tok, text):
    check_lossless(tok, text)


@given(st.text(max_size=300))
@settings(deadline=None, max_examples=300)
def test_any_text_is_lossless(tok, text):
    check_lossless(tok, text)


# Characters that mean something to SentencePiece or to the splitting into words come up often.
@given(st.lists(st.sampled_from([" ", SPACE, "\n", "\t", "\0", "a", "the", "<s>", "é", "😀"])))
@settings(deadline=None, max_examples=300)
def test_any_mixture_of_special_characters_is_lossless(tok, parts):
    check_lossless(tok, "".join(parts))


def test_words_that_are_common_in_text_are_lossless(tok, texts):
    for text in texts:
        check_lossless(tok, text)


def test_ids_are_those_of_sentencepiece(tok, sp, texts):
    for text in texts + HOSTILE:
        if SPACE not in text and len(text.split(" ")[0]) <= tokenizer.MAX_WORD:
            assert tok.encode(text).tolist() == sp.encode(text)


@given(st.text(st.sampled_from(list("  \n\t.,the12éß語😀\0")), max_size=200))
@example("  the  \n  the \t.\n\n ")
@settings(deadline=None, max_examples=300)
def test_ids_of_any_text_are_those_of_sentencepiece(tok, sp, text):
    assert tok.encode(text).tolist() == sp.encode(text)


def test_pieces_are_those_trained_on_the_raw_text(tok, texts):
    """Words and counts instead of the text are an optimisation: the pieces cannot differ."""
    model = io.BytesIO()
    options = tokenizer._TRAINER | {"input_format": "text", "num_threads": 1}
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=600, **options
    )
    assert Tokenizer(model.getvalue()).hash == tok.hash


def test_training_does_not_depend_on_threads_or_the_order_of_texts(
    trained, texts, tmp_path, monkeypatch
):
    again = train_tokenizer(texts[::-1], vocab_size=600, path=tmp_path / "a.model")
    assert again.hash == trained[0].hash
    assert (tmp_path / "a.model").read_bytes() == trained[1].read_bytes()
    monkeypatch.setitem(tokenizer._TRAINER, "num_threads", 1)
    single = train_tokenizer(texts, vocab_size=600, path=tmp_path / "b.model")
    assert single.hash == trained[0].hash
    other = train_tokenizer(texts, vocab_size=599, path=tmp_path / "c.model")
    assert other.hash != trained[0].hash


def test_training_does_not_depend_on_the_order_of_words_that_are_as_frequent():
    counts = {"the": 3, "of": 2, "and": 2, "a\tb": 2}
    lines = tokenizer._training_lines(counts)
    assert lines == tokenizer._training_lines(dict(reversed(counts.items())))
    assert lines == ["the\t3", "a\t2", "and\t2", "b\t2", "of\t2"]


def test_the_hash_is_of_pieces_and_scores(trained):
    """Scores decide which pieces merge first: another order is another tokenizer."""
    model = sentencepiece_model_pb2.ModelProto.FromString(trained[1].read_bytes())
    model.trainer_spec.num_threads += 1  # says nothing of the ids
    assert Tokenizer(model.SerializeToString()).hash == trained[0].hash
    model.pieces[-1].score, model.pieces[-2].score = model.pieces[-2].score, model.pieces[-1].score
    assert Tokenizer(model.SerializeToString()).hash != trained[0].hash


def test_the_cache_of_words_changes_nothing(trained, texts, monkeypatch):
    with_cache = [trained[0].encode(text).tolist() for text in texts]
    monkeypatch.setattr(tokenizer, "_CACHE_WORDS", 5)
    small = Tokenizer.load(trained[1])
    assert [small.encode(text).tolist() for text in texts] == with_cache
    assert len(small._encoder._cache) == 5


def test_long_documents_are_cut_between_characters_and_lossless(trained, monkeypatch):
    monkeypatch.setattr(tokenizer, "MAX_SLICE", 10)
    text = "slices of ten bytes, " * 3 + SPACE + "😀" * 9 + " end"
    check_lossless(trained[0], text)
    parts = list(tokenizer.slices(memoryview(text.encode())))
    assert "".join(parts) == text and len(parts) > 10
    assert all(7 <= len(part.encode()) <= 10 for part in parts[:-1])
    expected = np.concatenate([trained[0].encode(part) for part in parts])
    np.testing.assert_array_equal(trained[0].encode(text), expected)


def test_ids_do_not_depend_on_how_the_words_were_counted(trained, texts, tmp_path):
    """Counts of parts of the texts, added up in any order, train the same tokenizer."""
    total = sum((tokenizer.count_words(texts[k::7]) for k in (3, 1, 6, 0, 2, 5, 4)), Counter())
    path = tmp_path / "a.model"
    assert tokenizer.train_from_counts(total, vocab_size=600, path=path).hash == trained[0].hash
    assert path.read_bytes() == trained[1].read_bytes()


def test_special_ids_and_vocabulary(tok, sp):
    assert (tok.vocab_size, tok.bos_id) == (600, 1)
    assert tok.token_bytes.shape == (600,) and tok.token_bytes.dtype == np.int32
    assert tok.token_bytes[[0, 1]].tolist() == [0, 0] and (tok.token_bytes[2:] > 0).all()
    assert tok.encode("\n").tolist() == [sp.piece_to_id("\n")]
    assert len(tok.encode(" the the")) == 2  # it has learnt something
    assert tok.decode([1, *tok.encode("a"), 0, 1]) == "a"


def test_decode_refuses_ids_outside_the_vocabulary(tok):
    assert tok.decode([]) == ""
    for bad in ([-1], [tok.vocab_size], [5, 10**9]):
        with pytest.raises(IndexError, match="vocabulary of 600"):
            tok.decode(bad)


def test_lone_surrogate_is_an_error_not_a_replacement(tok):
    with pytest.raises(UnicodeEncodeError):
        tok.encode("a \ud800")


@given(st.text(max_size=50), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=100)
def test_stream_decoder_never_emits_half_a_character(tok, text, random):
    ids = tok.encode(text).tolist()
    decoder, pieces = StreamDecoder(tok), []
    while ids:
        n = random.randint(1, 3)
        pieces.append(decoder.feed(ids[:n]))
        ids = ids[n:]
        assert text.startswith("".join(pieces))
    assert "".join(pieces) == text


def test_stream_decoder_leaves_an_unfinished_character_out(tok):
    ids = tok.encode("😀")
    assert len(ids) == 4  # bytes: the emoji is no piece
    decoder = StreamDecoder(tok)
    assert decoder.feed(ids[:3]) == ""
    assert decoder.feed(tok.encode("a😀")) == "a😀"


def test_vocabulary_sizes_that_do_not_fit_name_one_that_does(texts, tmp_path):
    path = tmp_path / "t.model"
    for size in (65_537, 300):
        with pytest.raises(DataError, match=f"tokenizer.vocab_size={size}"):
            train_tokenizer(texts, vocab_size=size, path=path)
    with pytest.raises(DataError, match="too large.*--config.tokenizer.vocab_size=") as e:
        train_tokenizer(["to be or not to be"], vocab_size=5000, path=path)
    largest = int(str(e.value).rpartition("vocab_size=")[2].split()[0])
    train_tokenizer(["to be or not to be"], vocab_size=largest, path=path)
    for empty in ([], [""], ["\n\n", SPACE, "\0\t"]):
        with pytest.raises(DataError, match="no words"):
            train_tokenizer(empty, vocab_size=300, path=path)
    assert [p.name for p in tmp_path.iterdir()] == ["t.model"]


def test_texts_with_characters_no_piece_can_hold(tmp_path):
    text = f"tab\tnul\0block{SPACE}\u2585 word " * 5
    tok = train_tokenizer([text], vocab_size=285, path=tmp_path / "t.model")
    check_lossless(tok, text)


def test_other_files_are_rejected(trained, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        Tokenizer.load(tmp_path / "missing")
    for data in (b"", b"junk", trained[1].read_bytes()[:5000]):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(DataError, match=str(tmp_path / "bad")):
            Tokenizer.load(tmp_path / "bad")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(  # the defaults: they normalise, and have no byte pieces
        sentence_iterator=iter(["to be or not to be"] * 9),
        model_writer=model,
        vocab_size=20,
        model_type="bpe",
        minloglevel=2,
    )
    with pytest.raises(DataError, match="byte pieces.*changes text"):
        Tokenizer(model.getvalue())
