"""Byte-level BPE from a Hugging Face tokenizer.json: GPT-2's, Llama 3's, Qwen's, GPT-4o's.

The library `tokenizers` (Hugging Face) encodes. It gets no added tokens, so that "<|endoftext|>"
in a text is thirteen characters and never the end of a document; and no normaliser, for only what
keeps every byte of a text is accepted.
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
# Added tokens that begin a document; where there are several, the first of these does.
BOS_NAMES = (
    BOS,
    "<|begin_of_text|>",
    "<s>",
    "<bos>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<|startoftext|>",
)
_SCHEMA = {
    "model": {"vocab": dict, "merges": list},
    "added_tokens": [{"id": int, "content": str}],
    "normalizer": object,
    "pre_tokenizer": (dict, None),
}
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")  # of a model: changes text
_SPLITTERS = ("Split", "Digits", "Punctuation")  # pre-tokenizers that keep text
# Text can be cut where a letter or digit meets a space, or an ASCII one a newline: `_problems`
# checks that words end there. (A letter that is newer than the library's Unicode is no letter.)
_CUT = re.compile(r"(?:[^\W_](?= )|[A-Za-z0-9](?=\n))")
_LAST_CUT = re.compile(rf".*{_CUT.pattern}", re.DOTALL)

# Texts to find out whether a tokenizer is lossless, and whether its words end at `_CUT`.
_HARD = (
    "".join(map(chr, range(0x250))),
    "e\u0301 \u00e9 \u212b \ufb01 \u1e9b\u0323 \u0958 \ufa1e \u3392 \uff21 I\u0307 \u03a3\u03c2 ß",
    "   leading,  and   trailing \t\u00a0\u2003\u3000\u200b\ufeff\u2581 \r\n\r\r\n\n\n x\t\n  y \n",
    "\U0001f469\u200d\U0001f680 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \ufffd \ue000 \U0010ffff",
    "日本語のテキスト 中文。한국어 العربية हिन्दी ภาษาไทย Ελληνικά Русский עברית",
    "One of the best days in the world is the one on which I'm there, we'll say IT'S don't DON'T.",
    "1 12 123 1234567890 3.14 1,000,000 x1 1x a1 b2\n3 c\n4  d\n\n5 e \n 6\n",
    "def f(x, y):\n\treturn x['a'] != y  # ok\n\n\n    <b>&amp;</b> a\nb\n\nc  d\n  e HTTPServer\n",
)


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

    prefix = ""  # of texts

    def __init__(self, model: bytes, name: str) -> None:
        """Takes a tokenizer.json.

        Raises:
          DataError: it is damaged, no byte-level BPE or not lossless, or the package `tokenizers`
            is missing; the message begins with `name`.
        """
        try:
            self.json: dict[str, Any] = parse_json(model)
            problem = mismatch(self.json, _SCHEMA) or _unlike_bpe(self.json["model"])
            self.splits = [] if problem else _flattened(self.json["pre_tokenizer"])
        except ValueError as e:
            problem = str(e)
        if problem:
            raise DataError(f"{name}: this is no tokenizer.json of a byte-level BPE ({problem}).")
        bpe = self.json["model"]
        vocab: dict[str, int] = bpe["vocab"]
        self.merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in bpe["merges"]]
        added = {token["content"]: token["id"] for token in self.json["added_tokens"]}
        ids = vocab | added
        self.specials = added  # by name
        special_ids = set(added.values())
        self.bos = next((token for token in BOS_NAMES if token in added), "")
        _raise(name, self._problems(ids))
        # By id; ids that no token has are as empty as specials.
        self.tokens = [f"<unused {i}>" for i in range(max(ids.values()) + 1)]
        self.table = [b""] * len(self.tokens)
        for token, i in ids.items():
            self.tokens[i] = token
            if i not in special_ids:
                self.table[i] = bytes(map(BYTES.__getitem__, token))
        self.vocab_size = len(self.tokens)
        self._dtype = token_dtype(self.vocab_size)
        self.bos_id = ids[self.bos]
        self.hash = self._hash()
        plain = {token: i for token, i in vocab.items() if i not in special_ids}
        self._library = _load({**self.json, "model": {**bpe, "vocab": plain}}, name)
        _raise(name, self._losses(added))

    def _hash(self) -> str:
        content: list[Any] = [self.tokens, self.merges, sorted(self.specials.values())]
        if not self.is_like_gpt2:
            content += [self.splits, self.ignores_merges, self.bos]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def ignores_merges(self) -> bool:
        """Whether a word that is a token becomes this token, whatever the merges."""
        return bool(self.json["model"].get("ignore_merges"))

    @property
    def is_like_gpt2(self) -> bool:
        """Whether text is split into words, and BOS named, as by GPT-2."""
        return len(self.splits) == 1 and not self.ignores_merges and self.bos == BOS

    def _problems(self, ids: dict[str, int]) -> list[str]:
        """Returns what the file alone says against the tokenizer."""
        problems = []
        bpe, normalizer = self.json["model"], self.json["normalizer"]
        if bpe.get("type", "BPE") != "BPE" or any(bpe.get(affix) for affix in _AFFIXES):
            problems.append("it is no byte-level BPE (model)")
        if bpe.get("dropout"):
            problems.append("its ids are drawn at random (model.dropout)")
        if normalizer is not None:
            kind = normalizer.get("type") if isinstance(normalizer, dict) else normalizer
            problems.append(
                f'its normalizer {kind} changes text for good (set "normalizer" to null in a copy: '
                "text that is already normalised has the same ids then)"
            )
        *before, last = self.splits or [{}]
        removing = (split for split in before if split.get("behavior") == "Removed")
        if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
            problems.append("it does not keep the bytes of text (pre_tokenizer)")
        elif not before and not last.get("use_regex", True):
            problems.append("it does not split text into words (pre_tokenizer.use_regex)")
        elif any(split.get("type") not in _SPLITTERS for split in before) or any(removing):
            problems.append("its pre_tokenizer is not of splits that keep text")
        if not self.bos:
            problems.append(f"none of its added tokens begins a text: {', '.join(BOS_NAMES)}")
        if len(set(ids.values())) < len(ids) or min(ids.values(), default=0) < 0:
            problems.append("two of its tokens have the same id, or one has none")
        if max(ids.values(), default=0) >= MAX_VOCAB_SIZE:
            problems.append(f"its ids reach {max(ids.values()):,}, over {MAX_VOCAB_SIZE:,}")
        if missing := BYTES.keys() - ids.keys():
            problems.append(f"it lacks {len(missing)} of the 256 bytes")
        plain = (token for token in ids if token not in self.specials)
        if strange := [token for token in plain if not BYTES.keys() >= set(token)]:
            problems.append(f"it has a token {strange[0][:20]!r} that is not of bytes")
        return problems

    def _losses(self, added: Iterable[str]) -> list[str]:
        """Returns what hard texts say against the tokenizer."""
        split = self._library.pre_tokenizer.pre_tokenize_str
        for text in (*_HARD, " ".join(added)):
            ids = np.frombuffer(self._ids(text), self._dtype)
            if (back := b"".join(map(self.table.__getitem__, ids))) != text.encode():
                return [f"{text[:40]!r} becomes {back.decode(errors='replace')[:40]!r}"]
            for cut in _CUT.finditer(text):
                halves = split(text[: cut.end()]) + split(text[cut.end() :])
                if [word for word, _ in halves] != [word for word, _ in split(text)]:
                    return [f"its words reach over spaces, as in {text[cut.start() :][:20]!r}"]
        return []

    def encode(self, texts: Iterable[str]) -> Iterator[bytes]:
        """Yields the ids of a text in slices, as bytes.

        They are the ids of the whole text, except that a slice without a place to split it, such
        as a quarter of a megabyte without any space, is encoded by itself.
        """
        rest = ""
        for text in texts:
            cut = _LAST_CUT.match(text)
            end = len(text) if cut is None else cut.end()
            yield self._ids(rest + text[:end])
            rest = text[end:]
        yield self._ids(rest)

    def _ids(self, text: str) -> bytes:
        ids = self._library.encode(text, add_special_tokens=False).ids
        return np.array(ids, self._dtype).tobytes()


def _raise(name: str, problems: list[str]) -> None:
    if problems:
        raise DataError(f"{name}: this tokenizer cannot be used: {'; '.join(problems)}.")


def _unlike_bpe(model: dict[str, Any]) -> str:
    """Returns what is wrong with the types of a large `model`, as `mismatch` does, or ""."""
    if not all(type(i) is int for i in model["vocab"].values()):
        return "model.vocab has an id that is no whole number"
    for merge in model["merges"]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or [type(token) for token in pair] != [str, str]:
            return f"model.merges has {json.dumps(merge):.40}, which is no pair"
    return ""


def _flattened(pre_tokenizer: Any) -> list[dict[str, Any]]:
    """Returns the steps of a pre-tokenizer, those of nested sequences in turn."""
    if not isinstance(pre_tokenizer, dict):
        return []
    if pre_tokenizer.get("type") != "Sequence":
        return [pre_tokenizer]
    nested = pre_tokenizer.get("pretokenizers")
    if not isinstance(nested, list):
        raise ValueError("its pre_tokenizer is a sequence of nothing")
    return [step for inner in nested for step in _flattened(inner)]


def _load(spec: dict[str, Any], name: str) -> Any:
    """Returns the library's tokenizer: words and BPE, no added tokens, nothing around the text."""
    try:
        import tokenizers
    except ImportError as e:
        raise DataError(
            f"{name}: a tokenizer.json needs the package tokenizers: install the extra "
            "(pip install 'gptjax[export]')."
        ) from e
    nothing = dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    spec = {**spec, **nothing, "version": "1.0", "added_tokens": []}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as e:  # the kind that `tokenizers` raises for a merge without its token
        raise DataError(f"{name}: this is no tokenizer.json of a byte-level BPE ({e}).") from e
