"""Megabytes of text a CPU second that one core encodes: our tokenizer and others, in one run.

    python -m benchmarks.encoders --source=../shared/data/bench.parquet --gpt2=../shared/gpt2_vocab

Every encoder turns the texts of a parquet file into uint16 ids, all of them in turn, round by
round; in each round it starts with empty caches. All but GPT-2's are trained on these same texts,
with the same number of pieces. "Same model" is our own SentencePiece model in another library: its
ids are compared with ours, document by document. What is not installed is left out.
"""

import argparse
import importlib.util
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import sentencepiece as spm

from benchmarks import ports
from benchmarks.measure import alternate, show, use_one_core
from data_pipeline.byte_level import BOS, BYTES
from data_pipeline.tokenizer import SPACE, Tokenizer, train_tokenizer
from gptjax.compat.hf_tokenizer import tokenizer_json

log = logging.getLogger(__name__)

Encode = Callable[[str], bytes]  # text -> uint16 ids
GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # OpenAI's
)


def sentencepiece(model: bytes) -> Encode:
    """SentencePiece itself, on whole texts (which differ from ours where a text holds U+2581)."""
    processor = spm.SentencePieceProcessor()
    processor.load_from_serialized_proto(model)
    return lambda text: np.array(processor.encode(text), "<u2").tobytes()


def _encode(tokenizer: Any) -> Encode:
    """Uses `tokenizers` the fastest way it has: without offsets."""
    return lambda text: np.array(
        tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids, "<u2"
    ).tobytes()


def byte_level(texts: Sequence[str], vocab_size: int) -> str:
    """Trains a byte-level BPE with `tokenizers`, GPT-2's way; returns it as JSON."""
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def hugging_face(tokenizer_json: str) -> Encode:
    from tokenizers import Tokenizer as HFTokenizer

    return _encode(HFTokenizer.from_str(tokenizer_json))


def tiktoken_gpt2(folder: Path) -> Encode:
    """GPT-2's encoder from OpenAI's files; tiktoken's own way to it is a download."""
    import tiktoken

    vocabulary = json.loads((folder / "encoder.json").read_text())
    ranks = {
        bytes(BYTES[c] for c in token): rank for token, rank in vocabulary.items() if token != BOS
    }
    lines = (folder / "vocab.bpe").read_text().splitlines()[1:]  # the merges, best first
    merged = [bytes(BYTES[c] for c in line if c != " ") for line in lines]
    assert [ranks[token] for token in merged] == list(range(256, 256 + len(merged)))
    encoder = tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={BOS: 50256}
    )
    return lambda text: np.array(encoder.encode_ordinary(text), "<u2").tobytes()


def words_cached(model: bytes) -> Encode:
    tokenizer = Tokenizer(model)
    return lambda text: b"".join(tokenizer.encode_utf8(text.encode()))


def encoders(
    texts: Sequence[str], model: bytes, *, vocab_size: int, gpt2: Path | None
) -> dict[str, Callable[[], Encode]]:
    """Returns name -> a function that makes the encoder with empty caches."""
    makers: dict[str, Callable[[], Encode]] = {
        "gptjax (SentencePiece, words cached)": lambda: words_cached(model),
        "SentencePiece, same model": lambda: sentencepiece(model),
    }
    if importlib.util.find_spec("tokenizers"):
        ported = json.dumps(tokenizer_json(Tokenizer(model)))
        trained = byte_level(texts, vocab_size)
        makers["tokenizers, same model"] = lambda: hugging_face(ported)
        makers["tokenizers, byte-level BPE"] = lambda: hugging_face(trained)
    else:
        log.warning("tokenizers is not installed: left out")
    if not importlib.util.find_spec("tiktoken"):
        log.warning("tiktoken is not installed: left out")
        return makers
    makers["tiktoken, same model"] = lambda: ports.Tiktoken(model).encode
    if gpt2 is None:
        log.warning("--gpt2 is not given: GPT-2 is left out")
    else:
        makers["tiktoken, GPT-2's 50,257"] = lambda: tiktoken_gpt2(gpt2)
    return makers


def compare(texts: Sequence[str], ours: Encode, other: Encode) -> dict[str, Any]:
    """Counts the documents for which two encoders differ."""
    differ = [i for i, text in enumerate(texts) if ours(text) != other(text)]
    escaped = sum(SPACE in texts[i] for i in differ)
    return {
        "documents": len(texts),
        "different": len(differ),
        "of them with U+2581": escaped,
        "first": differ[0] if differ else None,
    }


def main() -> None:
    logging.basicConfig(format="%(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="parquet file with `text`")
    parser.add_argument("--gpt2", type=Path, help="folder with GPT-2's encoder.json and vocab.bpe")
    parser.add_argument("--vocab-size", type=int, default=32_768)
    parser.add_argument("--megabytes", type=float, default=1e3, help="of text, at most")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    use_one_core()
    texts, n_bytes = [], 0
    for batch in pq.ParquetFile(arguments.source).iter_batches(256, columns=["text"]):
        for text in filter(None, batch["text"].to_pylist()):
            if n_bytes < arguments.megabytes * 1e6:
                texts.append(text)
                n_bytes += len(text.encode())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        train_tokenizer(texts, vocab_size=arguments.vocab_size, path=path)
        model = path.read_bytes()
    makers = encoders(texts, model, vocab_size=arguments.vocab_size, gpt2=arguments.gpt2)
    n_tokens: dict[str, int] = {}

    def turn(name: str) -> Callable[[], float]:
        def run() -> float:
            encode = makers[name]()
            start = time.process_time()  # not the clock: other programs may be busy
            size = sum(len(encode(text)) for text in texts)
            seconds = time.process_time() - start
            n_tokens[name] = size // 2
            return n_bytes / 1e6 / seconds

        return run

    results = alternate({name: turn(name) for name in makers}, arguments.rounds)
    show(
        f"MB a CPU second on one core, {n_bytes / 1e6:.1f} MB of text in {len(texts):,} documents",
        [
            {"encoder": name, **rates, "tokens": n_tokens[name]}
            | {"bytes_per_token": round(n_bytes / n_tokens[name], 3)}
            for name, rates in results.items()
        ],
    )
    ours = words_cached(model)
    same = [name for name in makers if name.endswith("same model")]
    show(
        "ids compared with ours",
        [{"encoder": name, **compare(texts, ours, makers[name]())} for name in same],
    )


if __name__ == "__main__":
    main()
