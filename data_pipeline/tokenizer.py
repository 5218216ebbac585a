"""A lossless tokenizer, SentencePiece or byte-level BPE: decode(encode(x)) == x for Unicode text.

For SentencePiece, text is split into words (a newline, or spaces followed by other characters), and
each word is encoded once, then cached. BPE pieces never cross the start of a word, so the ids are
those of SentencePiece for the whole text, several times faster.
"""

import codecs
import hashlib
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece as spm

from configs.errors import DataError
from configs.read import MIB, read_bytes
from configs.validate import MAX_VOCAB_SIZE
from data_pipeline.byte_level import ByteLevel
from data_pipeline.files import write_atomically
from data_pipeline.token_ids import token_dtype

MAX_FILE = 64 * MIB  # bytes of a tokenizer: 200,000 tokens take 30
MAX_WORD = 256  # characters; longer words are split, which bounds time and memory on hostile text
MAX_SLICE = 1 << 18  # bytes encoded at a time, to bound the memory of a 50 MB document

SPACE = "\u2581"  # how SentencePiece writes a space: it cannot distinguish it from the real U+2581
WORD = re.compile(f"[\n{SPACE}]| {{0,{MAX_WORD}}}[^ \n{SPACE}]{{1,{MAX_WORD}}}| {{1,{MAX_WORD}}}")
END_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<eos>")
_NO_PREFIX = b"\x1a\x02\x18\x00"  # normalizer_spec.add_dummy_prefix = False, appended to a model
_CACHE_WORDS = 1 << 18  # about 50 MB
_CACHE_WORD_CHARS = 32  # longer words rarely recur

_TRAINER: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "user_defined_symbols": ["\n"],  # else a newline costs a byte token and never merges
    "max_sentence_length": 1 << 20,
    "input_format": "tsv",  # word, tab, count
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": -1,
    "pad_id": -1,
    "num_threads": 8,  # stored in the model file, hence a constant: the file is reproducible
    "minloglevel": 2,
}


class Piece(NamedTuple):
    """An entry of a SentencePiece vocabulary."""

    text: str  # with plain spaces
    score: float  # merges with higher scores are made first
    kind: str  # normal, unknown, control or byte (its text is <0x0A>)

    def utf8(self) -> bytes:
        """Returns what the piece decodes to; nothing for unknown and control."""
        if self.kind == "byte":
            return bytes([int(self.text[3:-1], 16)])
        return self.text.encode() if self.kind == "normal" else b""


class Tokenizer:
    """Converts text to ids and back; text never becomes BOS or another special token."""

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        """Takes a SentencePiece BPE, such as `train_tokenizer`'s, or a byte-level tokenizer.json.

        Raises:
          DataError: `model` is neither; the message begins with `name`.
        """
        self.byte_level = ByteLevel(model, name) if model[:1] == b"{" else None
        self._encoder = self.byte_level or SentencePiece(model, name)
        self.vocab_size: int = self._encoder.vocab_size
        self.dtype = token_dtype(self.vocab_size)  # of ids in the bytes that encode_utf8 yields
        self.bos_id: int = self._encoder.bos_id
        self.hash: str = self._encoder.hash
        self.specials: dict[str, int] = self._encoder.specials  # by name; no text has them
        self.special_names = {i: name for name, i in self.specials.items()}
        ends = [self.specials[name] for name in END_NAMES if name in self.specials]
        self.ends = frozenset([self.bos_id, *ends])  # ids with which a text or a message ends
        self.prefix: str = self._encoder.prefix  # what a text that is not empty is encoded with
        self._table: list[bytes] = self._encoder.table
        self.token_bytes = np.array([len(b) for b in self._table], np.int32)  # [V], bytes of UTF-8

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a model file; DataError where it is missing or unsuitable."""
        return cls(read_bytes(Path(path), MAX_FILE), str(path))

    def pieces(self) -> list[Piece]:
        """Returns the vocabulary of a SentencePiece model, by id; TypeError for another."""
        if not isinstance(self._encoder, SentencePiece):
            raise TypeError("a byte-level tokenizer has merges, and no pieces with scores")
        return self._encoder.pieces

    def encode_utf8(self, utf8: bytes | memoryview) -> Iterator[bytes]:
        """Yields slices of a text's ids, without BOS, as bytes of `dtype`, as in the store."""
        if self.prefix and len(utf8):
            utf8 = self.prefix.encode() + bytes(utf8)
        return self._encoder.encode(slices(utf8))

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of `text` [n], int32, no BOS; UnicodeEncodeError: a lone surrogate."""
        ids = b"".join(self.encode_utf8(text.encode()))
        return np.frombuffer(ids, self.dtype).astype(np.int32)

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Returns the UTF-8 of `ids`, without specials; it can end within a character.

        Raises:
          IndexError: an id is outside the vocabulary.
        """
        array = np.asarray(ids, np.int64).reshape(-1)
        if array.size and (array.min() < 0 or array.max() >= self.vocab_size):
            raise IndexError(
                f"token ids {array.min()}..{array.max()} reach outside the vocabulary of "
                f"{self.vocab_size}"
            )
        return b"".join(map(self._table.__getitem__, array.tolist()))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


class StreamDecoder:
    """Decodes ids as they arrive; drops bytes that are no character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")

    def feed(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the characters that are complete with `ids`."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))


class SentencePiece:
    """The encoder of a `Tokenizer` whose file is a SentencePiece model; BOS is 1."""

    def __init__(self, model: bytes, name: str) -> None:
        self._sp = spm.SentencePieceProcessor()
        try:
            self._sp.load_from_serialized_proto(model)
            # Llama 2's puts a space in front of each text; words are encoded without it.
            self.prefix = " " if self._sp.encode_as_pieces("a")[:1] != ["a"] else ""
            if self.prefix:
                self._sp.load_from_serialized_proto(model + _NO_PREFIX)
        except (RuntimeError, OSError) as e:
            raise DataError(
                f"{name}: this is not a SentencePiece model ({len(model):,} bytes): {e}. Delete "
                "the token store it belongs to and prepare the data again."
            ) from e
        self.vocab_size: int = self._sp.vocab_size()
        self.bos_id: int = self._sp.bos_id()
        self.pieces = [self._piece(i) for i in range(self.vocab_size)]
        self._check(name)
        self.specials = {p.text: i for i, p in enumerate(self.pieces) if p.kind == "control"}
        self.table = [piece.utf8() for piece in self.pieces]
        self.hash = self._hash()
        byte_ids = [self._sp.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]
        self._cache = _WordCache(self._sp)
        self._cache[SPACE] = np.array(byte_ids, self._cache.dtype).tobytes()

    def encode(self, texts: Iterable[str]) -> Iterator[bytes]:
        """Yields the ids of each slice of a text, as bytes."""
        for text in texts:
            yield b"".join(map(self._cache.__getitem__, WORD.findall(text)))

    def _piece(self, i: int) -> Piece:
        sp = self._sp
        text, score = sp.id_to_piece(i), sp.get_score(i)
        for kind in ("unknown", "control", "byte"):
            if getattr(sp, f"is_{kind}")(i):
                return Piece(text, score, kind)
        return Piece(text.replace(SPACE, " "), score, "normal")

    def _check(self, name: str) -> None:
        """Rejects a model that is not lossless, or whose pieces cross the end of a word."""
        sp, problems = self._sp, []
        pieces = [sp.id_to_piece(i) for i in range(self.vocab_size)]
        if self.vocab_size > MAX_VOCAB_SIZE:
            problems.append(f"it has {self.vocab_size:,} pieces, over {MAX_VOCAB_SIZE:,}")
        if (sp.unk_id(), sp.bos_id()) != (0, 1):
            problems.append("its special ids are not unk 0 and bos 1")
        if any(piece.score != round(piece.score) for piece in self.pieces):
            problems.append("it is no BPE (its scores are no ranks)")
        if sum(map(sp.is_byte, range(self.vocab_size))) != 256:
            problems.append("it lacks byte pieces")
        if any(re.search(f"[^{SPACE}]{SPACE}", p) or ("\n" in p and p != "\n") for p in pieces):
            problems.append("some piece crosses the end of a word")
        if "".join(sp.decode(sp.encode(s)) for s in (" a", "  b ", "\ufb01\n")) != " a  b \ufb01\n":
            problems.append("it changes text (normalisation or white space)")
        if problems:
            raise DataError(
                f"{name}: this tokenizer cannot be used: {'; '.join(problems)}. Prepare the data "
                "again to train a suitable one."
            )

    def _hash(self) -> str:
        """Hashes pieces, scores and types: the file also has the trainer's flags."""
        sp, digest = self._sp, hashlib.sha256()
        for i in range(self.vocab_size):
            piece = sp.id_to_piece(i).encode()
            kind = (sp.is_unknown(i), sp.is_control(i), sp.is_byte(i), sp.is_unused(i))
            digest.update(len(piece).to_bytes(4, "little") + piece + bytes(kind))
            digest.update(np.float32(sp.get_score(i)).tobytes())
        digest.update(self.prefix.encode())
        return digest.hexdigest()


class _WordCache(dict[str, bytes]):
    """Word -> its ids as bytes; a limited cache."""

    def __init__(self, sp: spm.SentencePieceProcessor) -> None:
        super().__init__()
        self._sp = sp
        self.dtype = token_dtype(sp.vocab_size())

    def __missing__(self, word: str) -> bytes:
        ids = np.array(self._sp.encode(word.encode()), self.dtype).tobytes()
        if len(word) <= _CACHE_WORD_CHARS and len(self) < _CACHE_WORDS:
            self[word] = ids
        return ids


def slices(utf8: bytes | memoryview) -> Iterator[str]:
    """Yields a text in slices of at most MAX_SLICE bytes that end between characters."""
    view = memoryview(utf8)
    start = 0
    while start < len(view):
        stop = min(start + MAX_SLICE, len(view))
        while stop < len(view) and view[stop] & 0xC0 == 0x80:  # in the middle of a character
            stop -= 1
        yield str(view[start:stop], "utf-8")
        start = stop


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Counts the words of texts, for `train_from_counts`."""
    parts = (part for text in texts for part in slices(text.encode()))
    return Counter(itertools.chain.from_iterable(map(WORD.findall, parts)))


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, path: str | Path) -> Tokenizer:
    """Trains a BPE model on `texts`: see `train_from_counts`."""
    return train_from_counts(count_words(texts), vocab_size=vocab_size, path=path)


def train_from_counts(counts: Mapping[str, int], *, vocab_size: int, path: str | Path) -> Tokenizer:
    """Trains a BPE model on counted words, writes it to `path` atomically and returns it.

    SentencePiece gets words and counts instead of text: the same pieces in less time and memory.
    The file is a function of the counts and the vocabulary size alone.

    Raises:
      DataError: `vocab_size` does not fit the texts, or there is no text.
    """
    lines = _training_lines(counts)
    if not lines:
        raise DataError(
            "tokenizer: the sample to train it on holds no words. Raise tokenizer.sample_bytes, or "
            "check the texts of the shard."
        )
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=vocab_size, **_TRAINER
        )
    except RuntimeError as e:
        raise DataError(_vocab_size_message(vocab_size, str(e))) from e
    write_atomically(Path(path), model.getvalue())
    return Tokenizer.load(path)


def _training_lines(words: Mapping[str, int]) -> list[str]:
    """Returns `word TAB count` lines in an order that depends on the counts alone."""
    counts = Counter(words)
    for word in [w for w in counts if "\t" in w or "\0" in w]:  # pieces cannot hold these two
        for part in re.split("[\t\0]", word):
            counts[part] += counts[word]
        del counts[word]
    for word in ("", "\n", SPACE):
        counts.pop(word, None)
    return [f"{w}\t{n}" for w, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _vocab_size_message(vocab_size: int, error: str) -> str:
    """Translates SentencePiece's error about the vocabulary size into a remedy."""
    if most := re.search(r"value <= (\d+)", error):
        return (
            f"tokenizer.vocab_size={vocab_size} is too large for the text the tokenizer is trained "
            f"on, which yields at most {most[1]} pieces. Use --config.tokenizer.vocab_size="
            f"{most[1]} or less, or raise tokenizer.sample_bytes."
        )
    if least := re.search(r"required_chars\D+\d+ vs (\d+)", error):
        return (
            f"tokenizer.vocab_size={vocab_size} is too small: 256 bytes, the specials and the "
            f"frequent characters of the text need {least[1]} pieces. Use "
            f"--config.tokenizer.vocab_size={int(least[1]) + 1} or more."
        )
    return f"tokenizer.vocab_size={vocab_size}: SentencePiece could not train on the text: {error}"
