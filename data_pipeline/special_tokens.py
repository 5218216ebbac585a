"""Adds special tokens to the file of a tokenizer, behind its last id; text is encoded as before.

A special token is in no text: what spells its name is encoded as other characters are.
"""

import json
import struct
from collections.abc import Sequence
from typing import Any

from data_pipeline.tokenizer import Tokenizer

_PIECES = 1  # number of the field of a SentencePiece model that lists its pieces
_CONTROL = 3  # type of a piece


def with_specials(model: bytes, names: Sequence[str], file: str = "tokenizer") -> bytes:
    """Returns the file of a tokenizer that has the special tokens `names`; it may have them before.

    Raises:
      DataError: `model` is no tokenizer, or has an ordinary token of such a name; the message
        begins with `file`.
    """
    tokenizer = Tokenizer(model, file)
    missing = [name for name in names if name not in tokenizer.specials]
    if not missing:
        return model
    if tokenizer.byte_level is None:
        extended = model + b"".join(map(_control_piece, missing))
    else:
        spec = tokenizer.byte_level.json
        vocab = spec["model"]["vocab"]
        added = [
            added_token(name, vocab.get(name, tokenizer.vocab_size + i))
            for i, name in enumerate(missing)
        ]
        spec = {**spec, "added_tokens": [*spec["added_tokens"], *added]}
        extended = json.dumps(spec, ensure_ascii=False).encode()
    Tokenizer(extended, file)
    return extended


def added_token(name: str, i: int) -> dict[str, Any]:
    """Returns the special token `name` as tokenizer.json lists it."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": name, "special": True, **flags}


def _control_piece(name: str) -> bytes:
    """Returns one more piece of a SentencePiece model: protobuf appends lists by concatenation."""
    piece = (
        _field(1, name.encode()) + struct.pack("<Bf", 2 << 3 | 5, 0.0) + bytes([3 << 3, _CONTROL])
    )
    return _field(_PIECES, piece)


def _field(number: int, data: bytes) -> bytes:
    """Returns a field of protobuf with fewer than 128 bytes."""
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data
