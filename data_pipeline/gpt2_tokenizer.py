"""GPT-2's tokenizer: BPE over bytes, as in its tokenizer.json, for imported checkpoints.

`tokenizers` (Hugging Face) does the encoding. It is told nothing of special tokens, so that
"<|endoftext|>" in a text is thirteen characters and never the end of a document.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from configs.errors import DataError

BOS = "<|endoftext|>"  # GPT-2 has it between documents
# Text may be cut where a letter or digit meets a space or newline: no token reaches over that.
_CUT = re.compile(r".*[^\W_](?=[ \n])", re.DOTALL)


def _bytes_of_characters() -> dict[str, int]:
    """Returns the byte that each of GPT-2's 256 characters stands for (Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _bytes_of_characters()


def _to_bytes(token: str) -> bytes:
    return bytes(map(_BYTES.__getitem__, token))


def make_json(vocab: dict[str, int], merges: Iterable[str]) -> bytes:
    """Returns the tokenizer.json of GPT-2's two files, vocab.json (encoder.json) and vocab.bpe.

    Args:
        vocab: id by token.
        merges: lines "left right"; a first line "#version: ..." is no merge.
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
    """The encoder behind a `Tokenizer` whose file is a tokenizer.json."""

    def __init__(self, model: bytes, name: str) -> None:
        """Takes a tokenizer.json; `name` is for errors.

        Raises:
          DataError: it is damaged, is not GPT-2's kind, or the package `tokenizers` is missing.
        """
        try:
            self.json: dict[str, Any] = json.loads(model)
            bpe = self.json["model"]
            vocab: dict[str, int] = dict(bpe["vocab"])
            self.merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in bpe["merges"]]
            added = {token["content"]: token["id"] for token in self.json["added_tokens"]}
            ids = vocab | added
            problems = self._problems(ids)
            self.specials = set(added.values())
            self.tokens: list[str] = sorted(ids, key=ids.__getitem__)
            self.table = [b"" if ids[t] in self.specials else _to_bytes(t) for t in self.tokens]
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise DataError(f"{name}: this is no tokenizer.json of a GPT-2 ({e!r}).") from e
        if problems:
            raise DataError(
                f"{name}: only tokenizers of GPT-2's kind are understood, and "
                f"{'; '.join(problems)}."
            )
        self.vocab_size = len(self.tokens)
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
            problems.append("it does not cut text as GPT-2's does (pre_tokenizer)")
        elif not split.get("use_regex", True):
            problems.append("it does not cut text into words (pre_tokenizer.use_regex)")
        if BOS not in ids:
            problems.append(f"it has no {BOS}")
        if sorted(ids.values()) != list(range(len(ids))):
            problems.append("its ids have gaps")
        if missing := _BYTES.keys() - ids.keys():
            problems.append(f"it lacks {len(missing)} of the 256 bytes")
        return problems

    def encode(self, texts: Iterable[str]) -> Iterator[bytes]:
        """Yields the ids of a text that comes in slices, as little-endian uint16.

        The ids are those of the whole text. (But for a slice without a place to cut, such as a
        quarter of a megabyte without any space: it is encoded by itself.)
        """
        rest = ""
        for text in texts:
            cut = _CUT.match(text)
            end = len(text) if cut is None else cut.end()
            yield self._ids(rest + text[:end])
            rest = text[end:]
        yield self._ids(rest)

    def _ids(self, text: str) -> bytes:
        return np.array(self._bpe.encode(text, add_special_tokens=False).ids, "<u2").tobytes()


def _make_bpe(vocab: dict[str, int], merges: list[tuple[str, ...]], name: str) -> Any:
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
