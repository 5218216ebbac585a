"""Our SentencePiece model in tiktoken, with the same ids.

SentencePiece merges, again and again, the two neighbours whose piece has the highest score.
"""

import numpy as np
import sentencepiece as spm

from data_pipeline.tokenizer import SPACE

WORD = f"[\n{SPACE}]| *[^ \n{SPACE}]+| +"  # as data_pipeline.tokenizer splits text


def _load(model: bytes) -> tuple[spm.SentencePieceProcessor, list[int]]:
    """Returns the model and the ids of its pieces of text (no specials, no bytes)."""
    sp = spm.SentencePieceProcessor()
    sp.load_from_serialized_proto(model)
    special = (sp.is_control, sp.is_unknown, sp.is_byte)
    return sp, [i for i in range(sp.vocab_size()) if not any(is_(i) for is_ in special)]


class Tiktoken:
    """The model in tiktoken, which starts from bytes and merges the pair of the lowest rank.

    Ranks: bytes, then characters of several bytes (and their prefixes), then pieces by falling
    score. A table maps ranks to our ids.
    """

    def __init__(self, model: bytes) -> None:
        import tiktoken

        sp, ids = _load(model)
        texts = {i: sp.id_to_piece(i).replace(SPACE, " ") for i in ids}
        characters = {text.encode(): i for i, text in texts.items() if len(text) == 1}
        byte_ids = [sp.piece_to_id(f"<0x{b:02X}>") for b in range(256)]
        expansions = {bytes([b]): [byte_ids[b]] for b in range(256)}
        for utf8 in characters:
            for n in range(2, len(utf8)):
                expansions.setdefault(utf8[:n], [byte_ids[b] for b in utf8[:n]])
        expansions |= {utf8: [i] for utf8, i in characters.items()}
        longer = [i for i, text in texts.items() if len(text) > 1]
        for i in sorted(longer, key=lambda i: -sp.get_score(i)):
            expansions.setdefault(texts[i].encode(), [i])
        self._encoding = tiktoken.Encoding(
            "ours",
            pat_str=WORD,
            mergeable_ranks={utf8: rank for rank, utf8 in enumerate(expansions)},
            special_tokens={},
        )
        self._parts = [np.array(e, "<u2").tobytes() for e in expansions.values()]
        # Id 0, unk, marks prefixes of characters, which become several byte pieces.
        table = [e[0] if len(e) == 1 else 0 for e in expansions.values()]
        self._table = np.array(table, "<u2")

    def encode(self, text: str) -> bytes:
        """Returns ids as uint16."""
        ranks = self._encoding.encode_to_numpy(text, disallowed_special=())
        ids = self._table[ranks]
        if ids.all():
            return ids.tobytes()
        return b"".join(map(self._parts.__getitem__, ranks.tolist()))
