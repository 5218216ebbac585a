"""Drawn tokens become text, whole characters at a time, up to its end."""

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_gpt

from gptjax import generate
from gptjax.inference.generation import TextStream, continue_texts
from gptjax.inference.sampler import Sampler, Sampling
from gptjax.inference.scoring import ScoredTokens
from gptjax.model import gpt

SAMPLING = Sampling(max_new_tokens=40, temperature=1.0, top_k=0, top_p=1.0)


class Scripted:
    """A sampler that draws given tokens, `chunk` at a time."""

    def __init__(self, *rows, chunk=1):
        self.rows, self.chunk = rows, chunk
        self.shown = None  # the prompts, as ids
        self.n_drawn = 0

    def draw(self, prompts, sampling, *, seeds, n_top=0):
        self.shown = [list(prompt) for prompt in prompts]
        for start in range(0, len(self.rows[0]), self.chunk):
            ids = np.array([row[start : start + self.chunk] for row in self.rows], np.int32)
            self.n_drawn += ids.shape[1]
            yield ScoredTokens(ids, None, None, None)


def pieces_of(store, ids, *, stop=(), chunk=1):
    sampler = Scripted(list(ids), chunk=chunk)
    pieces = continue_texts(sampler, store.tokenizer, [""], SAMPLING, seeds=[0], stop=stop)
    return [piece for _, piece in pieces]


def byte_ids(tokenizer, data: bytes) -> list[int]:
    """The byte tokens that spell `data`: the first 256 ids of one byte that follow the specials."""
    singles = {}
    for i in range(tokenizer.vocab_size):
        singles.setdefault(tokenizer.decode_bytes([i]), i)
    return [singles[bytes([b])] for b in data]


def test_the_model_sees_a_new_document(store):
    tokenizer = store.tokenizer
    prompts = ["", "The end. \u2581\U0001f600"]
    sampler = Scripted([], [])
    assert list(continue_texts(sampler, tokenizer, prompts, SAMPLING, seeds=[0, 0])) == []
    bos = tokenizer.bos_id
    assert sampler.shown == [[bos], [bos, *tokenizer.encode(prompts[1]).tolist()]]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_text_ends_where_the_document_does(store, chunk):
    tokenizer = store.tokenizer
    first, second = tokenizer.encode("one text").tolist(), tokenizer.encode("another").tolist()
    ids = [*first, tokenizer.bos_id, *second]
    assert "".join(pieces_of(store, ids, chunk=chunk)) == "one text"
    assert pieces_of(store, ids[len(first) :], chunk=chunk) == []


def test_a_model_that_wants_to_end_ends(store):
    """The same through a real model, whose only possible token is BOS."""
    tokenizer = store.tokenizer
    config = tiny(tokenizer.vocab_size)
    params = gpt.init(config, jax.random.key(0))
    params["ln_f"] = {"scale": jnp.zeros(16), "bias": jnp.ones(16)}
    params["wte"] = jnp.zeros_like(params["wte"]).at[tokenizer.bos_id].set(10.0)
    sampler = Sampler(config, params)
    assert list(continue_texts(sampler, tokenizer, ["Once"], SAMPLING, seeds=[0])) == []


CHARACTERS = "a\u00e9\u20ac\U0001f600\u2581\n"  # 1, 2, 3, 4, 3 and 1 bytes


def test_pieces_are_whole_characters(store):
    """Each byte comes alone, and is shown when its character is complete."""
    assert pieces_of(store, byte_ids(store.tokenizer, CHARACTERS.encode())) == list(CHARACTERS)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_cut_off_at_the_end_is_not_shown(store, cut):
    unfinished = "\U0001f600".encode()[:cut]
    ids = byte_ids(store.tokenizer, b"so " + unfinished)
    assert "".join(pieces_of(store, ids)) == "so "
    assert "".join(pieces_of(store, [*ids, store.tokenizer.bos_id])) == "so "


def test_bytes_that_are_no_character_are_left_out(store):
    ids = byte_ids(store.tokenizer, b"a\xff\xe2\x82b\xe2\x82\xac")
    assert "".join(pieces_of(store, ids)) == "ab\u20ac"


# --- stop strings ---


def test_text_that_may_become_a_stop_string_is_held_back(store):
    ids = byte_ids(store.tokenizer, b"xaab-aaab!")
    assert pieces_of(store, ids, stop=["aab!"]) == ["x", "aab-", "a"]
    assert pieces_of(store, ids, stop=["nowhere"]) == list("xaab-aaab!")
    assert pieces_of(store, ids[:4], stop=["aab!"]) == ["x", "aab"]  # no more tokens: shown
    assert pieces_of(store, [*ids[:4], store.tokenizer.bos_id], stop=["aab!"]) == ["x", "aab"]


def test_a_text_ends_before_the_first_stop_string():
    """Against str.find, on random texts of few letters, cut into random pieces."""
    rng = random.Random(5)
    letters = "ab\u20ac"

    class Letters:
        """A tokenizer whose ids spell pieces of a text."""

        ends = frozenset[int]()

        def __init__(self, pieces):
            self.pieces = pieces

        def decode_bytes(self, ids):
            return b"".join(self.pieces[i] for i in ids)

    ended = 0
    for _ in range(2_000):
        text = "".join(rng.choices(letters, k=rng.randint(0, 14)))
        stop = [
            "".join(rng.choices(letters, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))
        ]
        cuts = sorted(rng.choices(range(len(text.encode()) + 1), k=rng.randint(0, 10)))
        edges = [0, *cuts, len(text.encode())]
        pieces = [text.encode()[a:b] for a, b in itertools.pairwise(edges)]
        stream = TextStream(Letters(pieces), stop)
        shown = ""
        for i in range(len(pieces)):
            shown += stream.feed(i)
            assert text.startswith(shown)
        places = [at for s in stop if (at := text.find(s)) >= 0]
        assert stream.ended == bool(places)
        # Two may end within one piece: then the one that begins first counts, as in the whole text.
        assert shown + stream.flush() == _first_stop(text, stop, pieces)
        ended += stream.ended
    assert 500 < ended < 1_900


def _first_stop(text, stop, pieces):
    """Naive: searches the text so far again after each piece."""
    for i in range(len(pieces) + 1):
        so_far = b"".join(pieces[:i]).decode(errors="ignore")
        places = [at for s in stop if (at := so_far.find(s)) >= 0]
        if places:
            return so_far[: min(places)]
    return text


# --- several texts ---


def test_drawing_ends_with_the_last_text(store):
    tokenizer = store.tokenizer
    short, long = (byte_ids(tokenizer, data) for data in (b"ab.cdefghijk", b"abcdefgh.ijk"))
    sampler = Scripted(short, long)
    pieces = list(continue_texts(sampler, tokenizer, ["", ""], SAMPLING, seeds=[0, 0], stop=["."]))
    texts = ["".join(piece for i, piece in pieces if i == row) for row in (0, 1)]
    assert texts == ["ab", "abcdefgh"]
    assert sampler.n_drawn == 9


def test_texts_are_shown_in_turn():
    pieces = [(1, "x"), (0, "a"), (0, "b"), (1, "y"), (0, "c")]
    shown = list(generate._in_turn(pieces, ["A: ", "X: "]))
    assert shown == ["A: ", "a", "b", "c", "\n---\nX: xy"]


def tiny(vocab_size):
    return tiny_gpt(vocab_size=vocab_size, n_layer=1)


def test_text_is_what_the_tokens_spell(store):
    """A model of random weights draws bytes of every kind, and now and then BOS."""
    tokenizer = store.tokenizer
    config = tiny(tokenizer.vocab_size)
    params = gpt.init(config, jax.random.key(0))
    sampler = Sampler(config, jax.tree.map(lambda p: p * 5 if p.std() > 0 else p, params))
    prompts, seeds = ["The ", "", "\u20ac"] * 3, list(range(9))
    rows = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    sampling = Sampling(max_new_tokens=40, temperature=3.0, top_k=0, top_p=1.0)
    drawn = np.concatenate([d.ids for d in sampler.draw(rows, sampling, seeds=seeds)], axis=1)
    pieces = list(continue_texts(sampler, tokenizer, prompts, sampling, seeds=seeds))
    for row, ids in enumerate(drawn.tolist()):
        if tokenizer.bos_id in ids:
            ids = ids[: ids.index(tokenizer.bos_id)]
        text = "".join(piece for i, piece in pieces if i == row)
        assert text == tokenizer.decode_bytes(ids).decode(errors="ignore")
    assert sum(len(piece) for _, piece in pieces) > 50
