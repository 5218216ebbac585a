"""GPT-2's byte-level BPE, from its tokenizer.json, for imported checkpoints.

The library `tokenizers` (Hugging Face) encodes. It gets no special tokens, so that "<|endoftext|>"
in a text is thirteen characters and never the end of a document.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from configs.errors import DataError
from configs.read import mismatch, parse_json
from configs.validate import MAX_VOCAB_SIZE
from data_pipeline.token_ids import token_dtype

BOS = "<|endoftext|>"  # GPT-2 has it between documents
_SCHEMA = {
    "model": {"vocab": {str: int}, "merges": [(str, [str, str])]},
    "added_tokens": [{"id": int, "content": str}],
    "normalizer": object,
    "pre_tokenizer": (dict, None),
}
# Text can be split where a letter or digit meets a space or newline: no token crosses that.
_CUT = re.compile(r".*[^\W_](?=[ \n])", re.DOTALL)


# The byte of each of GPT-2's 256 characters (Radford et al. 2019): printable ones, then the others.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted({*range(256)} - {*_PRINTABLE})
BYTES = {chr(b): b for b in _PRINTABLE} | {chr(256 + i): b for i, b in enumerate(_OTHERS)}


def make_json(vocab: dict[str, int], merges: Iterable[str]) -> bytes:
    """Returns the tokenizer.json of GPT-2's two files.

    Args:
        vocab: vocab.json or encoder.json, token -> id.
        merges: lines "left right" of merges.txt or vocab.bpe; a first "#version: ..." is skipped.
    """
    pairs = [line.split(" ") for line in merges if line and not line.startswith("#version")]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    special = {"id": vocab.get(BOS, len(vocab)), "content": BOS, "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special | flags],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": pairs},
    }
    return json.dumps(spec, ensure_ascii=False).encode()


class ByteLevel:
    """The encoder of a `Tokenizer` whose file is a tokenizer.json."""

    def __init__(self, model: bytes, name: str) -> None:
        """Takes a tokenizer.json.

        Raises:
          DataError: it is damaged or unlike GPT-2's, or the package `tokenizers` is missing; the
            message begins with `name`.
        """
        try:
            self.json: dict[str, Any] = parse_json(model)
            problem = mismatch(self.json, _SCHEMA)
        except ValueError as e:
            problem = str(e)
        if problem:
            raise DataError(f"{name}: this is no tokenizer.json of a GPT-2 ({problem}).")
        bpe = self.json["model"]
        vocab: dict[str, int] = bpe["vocab"]
        self.merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in bpe["merges"]]
        added = {token["content"]: token["id"] for token in self.json["added_tokens"]}
        ids = vocab | added
        self.specials = set(added.values())
        if problems := self._problems(ids):
            raise DataError(
                f"{name}: only tokenizers like GPT-2's are supported, and {'; '.join(problems)}."
            )
        self.tokens: list[str] = sorted(ids, key=ids.__getitem__)
        self.table = [
            b"" if ids[token] in self.specials else bytes(BYTES[c] for c in token)
            for token in self.tokens
        ]
        self.vocab_size = len(self.tokens)
        self._dtype = token_dtype(self.vocab_size)
        self.bos_id = ids[BOS]
        self.hash = hashlib.sha256(
            json.dumps([self.tokens, self.merges, sorted(self.specials)]).encode()
        ).hexdigest()
        self._bpe = _make_bpe(vocab, self.merges, name)

    def _problems(self, ids: dict[str, int]) -> list[str]:
        problems = []
        split = self.json["pre_tokenizer"] or {}
        if self.json["model"].get("type", "BPE") != "BPE" or self.json["normalizer"] is not None:
            problems.append("this is no BPE without normalisation")
        if split.get("type") != "ByteLevel" or split.get("add_prefix_space"):
            problems.append("it does not split text as GPT-2's does (pre_tokenizer)")
        elif not split.get("use_regex", True):
            problems.append("it does not split text into words (pre_tokenizer.use_regex)")
        if BOS not in ids:
            problems.append(f"it has no {BOS}")
        if sorted(ids.values()) != list(range(len(ids))):
            problems.append("its ids have gaps")
        if len(ids) > MAX_VOCAB_SIZE:
            problems.append(f"it has {len(ids):,} tokens, over {MAX_VOCAB_SIZE:,}")
        if missing := BYTES.keys() - ids.keys():
            problems.append(f"it lacks {len(missing)} of the 256 bytes")
        plain = (token for token, i in ids.items() if i not in self.specials)
        if strange := [token for token in plain if not BYTES.keys() >= set(token)]:
            problems.append(f"it has a token {strange[0][:20]!r} that is not of bytes")
        return problems

    def encode(self, texts: Iterable[str]) -> Iterator[bytes]:
        """Yields the ids of a text in slices, as bytes.

        They are the ids of the whole text, except that a slice without a place to split it, such
        as a quarter of a megabyte without any space, is encoded by itself.
        """
        rest = ""
        for text in texts:
            cut = _CUT.match(text)
            end = len(text) if cut is None else cut.end()
            yield self._ids(rest + text[:end])
            rest = text[end:]
        yield self._ids(rest)

    def _ids(self, text: str) -> bytes:
        return np.array(self._bpe.encode(text, add_special_tokens=False).ids, self._dtype).tobytes()


def _make_bpe(vocab: dict[str, int], merges: list[Any], name: str) -> Any:
    try:
        import tokenizers
    except ImportError as e:
        raise DataError(
            f"{name}: this tokenizer of an imported model needs the package tokenizers: install "
            "the extra (pip install 'gptjax[export]')."
        ) from e
    try:
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    except Exception as e:  # the kind that `tokenizers` raises for a merge without its token
        raise DataError(f"{name}: this is no tokenizer.json of a GPT-2 ({e}).") from e
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return bpe
