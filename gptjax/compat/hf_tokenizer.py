"""Our tokenizer as a tokenizer.json of Hugging Face's `tokenizers`: the same ids for any text.

SentencePiece merges, among all neighbours whose concatenation is a piece, those with the highest
score, leftmost first. `tokenizers` merges listed pairs, in the order of the list. A piece always
results from the same two pieces, because merges inside it do not depend on the text around it: so
one pair for each piece, ordered by score, is equivalent.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from data_pipeline.tokenizer import WORD, Piece, Tokenizer


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
    and unk are in the vocabulary but not among `added_tokens`, which would match in texts. The
    tokenizer.json of an imported model, or of tokenizer.file, is returned unchanged.
    """
    if tokenizer.byte_level is not None:
        return tokenizer.byte_level.json
    pieces = tokenizer.pieces()
    bos = pieces[tokenizer.bos_id].text
    sequence_a, sequence_b = (
        [{"SpecialToken": {"id": bos, "type_id": i}}, {"Sequence": {"id": name, "type_id": i}}]
        for i, name in enumerate("AB")
    )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
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
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
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
    """Returns the content of tokenizer_config.json, with which `transformers` loads the above."""
    byte_level = tokenizer.byte_level
    bos = byte_level.bos if byte_level else tokenizer.pieces()[tokenizer.bos_id].text
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": bos,  # BOS separates documents, so it also ends a text
        "split_special_tokens": True,  # "<s>" in a text is three characters
        "clean_up_tokenization_spaces": False,
        "model_max_length": block_size,
    }
