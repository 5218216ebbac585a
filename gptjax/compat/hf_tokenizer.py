"""Our tokenizer as a tokenizer.json of Hugging Face's `tokenizers`: the same ids for any text.

SentencePiece merges, among all neighbours whose concatenation is a piece, those with the highest
score, leftmost first. `tokenizers` merges listed pairs, in the order of the list. Where a piece
comes to be, it is always out of the same two pieces, for the merges inside it do not depend on the
text around it: so one pair for each piece, ordered by score, does the same.
"""

from collections.abc import Sequence
from typing import Any

from data_pipeline.gpt2_tokenizer import BOS
from data_pipeline.tokenizer import WORD, Piece, Tokenizer


def last_merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Returns the two pieces that each longer piece is made of, in the order of merging."""
    scores = {piece.text: piece.score for piece in pieces if piece.kind == "normal"}
    pairs = {}
    for text in scores:
        parts = list(text)
        while len(parts) > 1:
            found = [
                (-scores[left + right], i)
                for i, (left, right) in enumerate(zip(parts, parts[1:], strict=False))
                if left + right in scores
            ]
            if not found:  # never comes to be, though it is in the vocabulary
                break
            _, i = min(found)
            if len(parts) == 2:
                pairs[text] = (parts[0], parts[1])
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [pairs[text] for text in sorted(pairs, key=lambda text: -scores[text])]


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the content of tokenizer.json.

    Pieces have plain spaces, so that U+2581 becomes bytes like any character that has no piece.
    BOS and unk are in the vocabulary but not among `added_tokens`, which would be found in texts.
    The tokenizer of an imported GPT-2 is returned as it came.
    """
    if tokenizer.byte_level is not None:
        return tokenizer.byte_level.json
    pieces = tokenizer.pieces()
    bos = pieces[tokenizer.bos_id].text
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
            "single": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": bos, "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}],
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
    """Returns the content of tokenizer_config.json, which makes `transformers` load the above."""
    bos = BOS if tokenizer.byte_level else tokenizer.pieces()[tokenizer.bos_id].text
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": bos,  # stands between documents, so it ends a text, too
        "split_special_tokens": True,  # "<s>" in a text is three characters
        "clean_up_tokenization_spaces": False,
        "model_max_length": block_size,
    }
