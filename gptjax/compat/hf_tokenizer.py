"""Our tokenizer as a tokenizer.json of Hugging Face's `tokenizers`: the same ids for any text.

SentencePiece merges, among all neighbours whose concatenation is a piece, those with the highest
score, leftmost first. `tokenizers` merges listed pairs, in the order of the list. A piece always
results from the same two pieces, because merges inside it do not depend on the text around it: so
one pair for each piece, ordered by score, is equivalent.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from data_pipeline.chat import END, TEMPLATE, has_markers
from data_pipeline.special_tokens import added_token
from data_pipeline.tokenizer import END_NAMES, WORD, Piece, Tokenizer


def last_merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Returns the two pieces whose merge gives each longer piece, in the order of merging."""
    scores = {piece.text: piece.score for piece in pieces if piece.kind == "normal"}
    pairs = {}
    for text in scores:
        parts = list(text)
        while len(parts) > 1:
            joined = map("".join, itertools.pairwise(parts))
            merges = [(-scores[piece], i) for i, piece in enumerate(joined) if piece in scores]
            if not merges:  # in the vocabulary, but unreachable
                break
            _, i = min(merges)
            if len(parts) == 2:
                pairs[text] = (parts[0], parts[1])
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [pairs[text] for text in sorted(pairs, key=lambda text: -scores[text])]


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the content of tokenizer.json.

    Pieces have plain spaces, so that U+2581 becomes bytes like any character without a piece. BOS
    and unk are in the vocabulary but not among `added_tokens`, which would match in texts: only a
    chat has its special tokens there, for a template writes them as text. The tokenizer.json of an
    imported model, or of tokenizer.file, is returned unchanged.
    """
    if tokenizer.byte_level is not None:
        return tokenizer.byte_level.json
    pieces = tokenizer.pieces()
    bos, prefix = pieces[tokenizer.bos_id].text, tokenizer.prefix
    strip = [{"type": "Strip", "content": prefix, "start": 1, "stop": 0}] if prefix else []
    sequence_a, sequence_b = (
        [{"SpecialToken": {"id": bos, "type_id": i}}, {"Sequence": {"id": name, "type_id": i}}]
        for i, name in enumerate("AB")
    )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(name, i)
            for name, i in (tokenizer.specials.items() if has_markers(tokenizer) else ())
        ],
        "normalizer": {"type": "Prepend", "prepend": prefix} if prefix else None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": WORD.pattern},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": sequence_a,
            "pair": sequence_a + sequence_b,
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece.text: i for i, piece in enumerate(pieces)},
            "merges": [list(pair) for pair in last_merges(pieces)],
        },
    }


def tokenizer_config(tokenizer: Tokenizer, block_size: int) -> dict[str, Any]:
    """Returns the content of tokenizer_config.json, with which `transformers` loads the above.

    With the template of a chat, the names of special tokens in a text become these tokens: there,
    but not here.
    """
    bos, template = tokenizer.special_names[tokenizer.bos_id], has_markers(tokenizer)
    pad = pad_id(tokenizer)
    # BOS separates documents, so it also ends a text.
    end = next((name for name in END_NAMES if name in tokenizer.specials), bos)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": END if template else end,
        "pad_token": tokenizer.special_names.get(pad) or tokenizer.pieces()[pad].text,
        "split_special_tokens": not template,  # "<s>" in a text is three characters
        "clean_up_tokenization_spaces": False,
        "model_max_length": block_size,
        **({"chat_template": TEMPLATE} if template else {}),
    }


def pad_id(tokenizer: Tokenizer) -> int:
    """Returns the token that fills batches up: SentencePiece's unk, which no text has, or BOS."""
    return 0 if tokenizer.byte_level is None else tokenizer.bos_id


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the content of generation_config.json: with which tokens a text begins and ends."""
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": sorted(tokenizer.ends),
        "pad_token_id": pad_id(tokenizer),
    }
