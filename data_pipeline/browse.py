"""Shows a prepared store: statistics, a histogram of lengths, and rows as the model sees them.

    python -m data_pipeline.browse --config=configs/quickstart.py --split=train --epoch=0 --start=0

Rows come in the order of training, with the epoch's shuffling; each document in them is named by
its file and row. The source is prepared first where that has not been done.
"""

import dataclasses
import io
import os
import shutil
import sys
from collections.abc import Iterator

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from configs.cli import define_config, run
from configs.errors import UserError
from data_pipeline.packing import Documents, PackedRows
from data_pipeline.prepare import prepare, summary
from data_pipeline.subset import training_documents
from data_pipeline.token_store import SPLITS, TokenStore
from data_pipeline.tokenizer import Tokenizer

# Text of the web may hold codes that move the cursor: they are shown, not obeyed.
_VISIBLE = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n"}


@dataclasses.dataclass(frozen=True)
class Look:
    """What the output may use."""

    width: int  # columns
    rich: bool  # colours and block characters

    @classmethod
    def of_stdout(cls) -> "Look":
        """Plain for pipes, files and dumb terminals, and where NO_COLOR is set."""
        terminal = os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        rich = sys.stdout.isatty() and terminal and utf8
        return cls(shutil.get_terminal_size((100, 24)).columns, rich)

    def paint(self, text: str, code: int) -> str:
        """Colours `text` by an ANSI code: 1 bold, 2 faint, 7 inverse, 36 cyan."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.rich else text

    def bar(self, share: float, width: int) -> str:
        """Draws `share` (0 to 1) of `width` columns."""
        if not self.rich:
            return "#" * round(share * width)
        eighths = round(8 * share * width)
        return (
            "\u2588" * (eighths // 8) + " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"[eighths % 8]
        )


def histogram(lengths: np.ndarray, look: Look) -> str:
    """Draws how many documents have 1, 2-3, 4-7, ... tokens, and the share of tokens they hold."""
    bins = np.frexp(lengths)[1] - 1  # floor(log2)
    documents = np.bincount(bins)
    tokens = np.bincount(bins, weights=lengths)
    lines = [f"{'tokens':>19}{'documents':>12}{'share':>8}{'of tokens':>11}"]
    width = max(look.width - len(lines[0]) - 2, 8)
    for i in range(int(bins.min()), len(documents)):
        lines.append(
            f"{f'{2**i:,} - {2 ** (i + 1) - 1:,}':>19}{documents[i]:12,}"
            f"{documents[i] / documents.sum():8.1%}{tokens[i] / tokens.sum():11.1%}  "
            + look.paint(look.bar(documents[i] / documents.max(), width), 36)
        )
    return "\n".join(line.rstrip() for line in lines)


class Reader:
    """Turns rows of a split into text."""

    def __init__(
        self, split: Documents, rows: PackedRows, tokenizer: Tokenizer, look: Look, *, tokens: bool
    ):
        """`tokens`: whether the ends of tokens are marked."""
        self._split, self._rows, self._tokenizer, self._look = split, rows, tokenizer, look
        self._marked = tokens

    def row(self, g: int) -> Iterator[str]:
        """Yields the lines that show the inputs of row `g`, document by document."""
        block_size = len(self._rows[g].inputs)
        position = 0
        for document, start, stop in self._rows.pieces(g):
            stop = min(stop, start + block_size - position)  # not the last target, token T
            if start == stop:
                break
            length = int(self._split.doc_lengths[document])
            header = (
                f"[{position}:{position + stop - start}] {self._split.doc_id(document)}, tokens "
                f"{start:,}:{stop:,} of {length:,}"
                + (", begun in another row" if start else "")
                + (", goes on in another row" if stop < length else "")
            )
            yield self._look.paint(header, 36)
            yield self.text(self._split.read(document, start, stop))
            position += stop - start
        if position < block_size:
            header = f"[{position}:{block_size}] filling, masked out of the loss (end of the epoch)"
            yield self._look.paint(header, 36)

    def text(self, tokens: np.ndarray) -> str:
        """Decodes tokens, with BOS and control characters made visible."""
        bos = self._tokenizer.bos_id
        marks = [self._look.paint("<BOS>", 7)] if tokens[0] == bos else []
        tokens = tokens[len(marks) :]
        shown = [[token] for token in tokens] if self._marked else [tokens]
        texts = (  # a character that a token or a row cuts is shown as bytes, like \\xe2
            self._tokenizer.decode_bytes(ids).decode(errors="backslashreplace") for ids in shown
        )
        separator = self._look.paint("|", 2) if self._marked else ""
        return separator.join([*marks, *(text.translate(_VISIBLE) for text in texts)])


def report(
    config: ConfigDict,
    store: TokenStore,
    look: Look,
    *,
    split: str,
    epoch: int,
    rows: int,
    start: int,
    tokens: bool,
) -> Iterator[str]:
    """Yields the whole output, line by line (some hold several).

    Raises:
      UserError: the split, epoch or rows do not exist.
    """
    if split not in SPLITS:
        raise UserError(f"--split={split}: the splits are {' and '.join(SPLITS)}.")
    documents: Documents = store.split(split)
    if split == "train":
        documents = training_documents(store, config.data.max_train_tokens)
    packed = PackedRows(
        documents,
        block_size=config.model.block_size,
        seed=config.seed
        if split == "train"
        else 0,  # as gptjax.train.trainer and gptjax.evaluate have it
        bos_id=store.tokenizer.bos_id,
        segments=config.data.document_mask,
    )
    n = packed.rows_per_epoch
    if epoch < 0 or rows < 0:
        raise UserError(f"--epoch={epoch} and --rows={rows} count from 0.")
    if not 0 <= start < n:
        raise UserError(
            f"--start={start}: an epoch of {split!r} has the rows 0 to {n - 1:,}, of "
            f"{config.model.block_size} tokens."
        )
    yield summary(store)
    yield look.paint(f"\nDocuments of {split!r} by length, BOS included\n", 1)
    yield histogram(documents.doc_lengths, look)
    reader = Reader(documents, packed, store.tokenizer, look, tokens=tokens)
    for g in range(epoch * n + start, epoch * n + min(start + rows, n)):
        step = g // (config.train.batch_size * config.train.gradient_accumulation_steps)
        yield look.paint(
            f"\nRow {g % n:,} of {n:,}, epoch {epoch}"
            + (f", in optimizer step {step:,}" if split == "train" else ""),
            1,
        )
        yield from reader.row(g)


def main(
    config: ConfigDict,
    *,
    split: str = "train",
    epoch: int = 0,
    rows: int = 3,
    start: int = 0,
    tokens: bool = False,
) -> None:
    """Prepares the source of `config` where needed, and prints the report."""
    store = TokenStore.open(prepare(config))
    look = Look.of_stdout()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character gets "?"
    try:
        for line in report(
            config, store, look, split=split, epoch=epoch, rows=rows, start=start, tokens=tokens
        ):
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; Python would complain at its exit, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    define_config()
    flags.DEFINE_string("split", "train", "train or val.")
    flags.DEFINE_integer("epoch", 0, "Pass over the split: each has its own order.")
    flags.DEFINE_integer("rows", 3, "How many rows to show; 0: statistics only.")
    flags.DEFINE_integer("start", 0, "First row, in the order of the epoch.")
    flags.DEFINE_bool("tokens", False, "Mark the ends of tokens with |.")
    options = ("split", "epoch", "rows", "start", "tokens")
    run(lambda config: main(config, **{name: getattr(flags.FLAGS, name) for name in options}))
