"""Shows a prepared store: statistics, a histogram of lengths, and rows as the model sees them.

    gptjax browse quickstart --split=train --epoch=0 --start=0

Rows are in the order of training, with the epoch's shuffling; each document in them is named by its
file and row. The source is prepared first if needed.
"""

import io
import itertools
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from rich.bar import Bar
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Table

from configs.cli import define_config, run
from configs.errors import UserError
from data_pipeline.packing import Rows
from data_pipeline.prepare import prepare_all, summary
from data_pipeline.progress import VISIBLE
from data_pipeline.subset import split_groups, training_groups, training_rows, validation_rows
from data_pipeline.token_store import SPLITS
from data_pipeline.tokenizer import Tokenizer

_MIN_WIDTH = 60  # columns of the histogram, which narrower terminals wrap
_BINS = 31  # of lengths, which are int32
_CYAN = Style(color="cyan")


def histogram(groups: Iterable[np.ndarray], width: int) -> Table:
    """Returns how many documents have 1, 2-3, 4-7, ... tokens, and their share of all tokens.

    `groups` are the lengths of all documents.
    """
    documents, tokens = np.zeros(_BINS, np.int64), np.zeros(_BINS)
    for lengths in groups:
        bins = np.frexp(lengths)[1] - 1  # floor(log2)
        documents += np.bincount(bins, minlength=_BINS)
        tokens += np.bincount(bins, weights=lengths, minlength=_BINS)
    used = np.flatnonzero(documents)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), width=max(width, _MIN_WIDTH))
    for name in ("tokens", "documents", "share", "of tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(ratio=1)
    for i in range(used[0], used[-1] + 1):
        table.add_row(
            f"{2**i:,} - {2 ** (i + 1) - 1:,}",
            f"{documents[i]:,}",
            f"{documents[i] / documents.sum():.1%}",
            f"{tokens[i] / tokens.sum():.1%}",
            Bar(documents.max(), 0, documents[i], color="cyan"),
        )
    return table


def visible(tokens: np.ndarray, tokenizer: Tokenizer, *, mark_tokens: bool) -> Iterator[Segment]:
    """Yields decoded tokens; special ones, control characters and maybe ends of tokens visible."""
    names = {**tokenizer.special_names, tokenizer.bos_id: "<BOS>"}
    is_first = True
    for is_special, ids in itertools.groupby(tokens.tolist(), names.__contains__):
        for group in [[i] for i in ids] if mark_tokens or is_special else [list(ids)]:
            if is_special:
                yield Segment(names[group[0]], Style(reverse=True))
            else:
                if mark_tokens and not is_first:
                    yield Segment("|", Style(dim=True))
                # Parts of a character, which a token or row has split, are shown as bytes: \xe2.
                text = tokenizer.decode_bytes(group).decode(errors="backslashreplace")
                yield Segment(text.translate(VISIBLE))
            is_first = False


def row_text(
    rows: Rows, g: int, tokenizer: Tokenizer, *, mark_tokens: bool = False
) -> Iterator[Segment]:
    """Yields the inputs of row `g`, document by document, each below a heading."""
    block_size = len(rows[g].inputs)
    position = 0
    documents = rows.documents_of(g)
    for document, start, stop in rows.spans(g):
        stop = min(stop, start + block_size - position)  # without the last target, token T
        if start == stop:
            break
        length = int(documents.doc_lengths[document])
        heading = (
            f"[{position}:{position + stop - start}] {documents.doc_id(document)}, tokens "
            f"{start:,}:{stop:,} of {length:,}"
            + (", begins in another row" if start else "")
            + (", continues in another row" if stop < length else "")
        )
        yield Segment(f"{heading}\n", _CYAN)
        yield from visible(
            documents.read(document, start, stop), tokenizer, mark_tokens=mark_tokens
        )
        yield Segment("\n")
        position += stop - start
    if position < block_size:
        heading = f"[{position}:{block_size}] padding, not in the loss"
        yield Segment(f"{heading}\n", _CYAN)


def main(
    config: ConfigDict,
    *,
    split: str = "train",
    epoch: int = 0,
    rows: int = 3,
    start: int = 0,
    tokens: bool = False,
) -> None:
    """Prints the statistics of a split, and `rows` rows of an epoch from row `start`.

    Raises:
      UserError: the split, epoch or rows do not exist.
    """
    if split not in SPLITS:
        raise UserError(f"--split={split}: the splits are {' and '.join(SPLITS)}.")
    if epoch < 0 or rows < 0:
        raise UserError(f"--epoch={epoch} and --rows={rows} must be at least 0.")
    stores = prepare_all(config)
    if split == "train":
        packed: dict[str, Rows] = {"": training_rows(config, stores)}
    else:
        packed = {name: validation_rows(config, s) for name, s in stores.sources.items()}
    sizes = [of_a_source.rows_per_epoch for of_a_source in packed.values()]
    n_rows = min((n for n in sizes if n is not None), default=None)
    if n_rows is None and epoch:
        raise UserError(
            f"--epoch={epoch}: a mixture has no epochs, for each source has its own: --start alone "
            "says which row of the run is the first."
        )
    if start < 0 or (n_rows is not None and start >= n_rows):
        last = "" if n_rows is None else f" to {n_rows - 1:,}"
        raise UserError(
            f"--start={start}: an epoch of {split!r} has the rows 0{last}, of "
            f"{config.model.block_size} tokens."
        )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # prints "?" for what a terminal cannot show
    console = Console(highlight=False)
    for store in stores.sources.values():
        limit = config.data.max_train_tokens
        groups = training_groups(store, limit) if split == "train" else split_groups(store, split)
        lengths = (group.open().doc_lengths for group in groups)
        console.out(summary(store))
        console.out(f"\nDocuments of {split!r} by length, BOS included\n", style="bold")
        console.print(histogram(lengths, console.width), crop=False)
    for name, of_a_source in packed.items():
        n = of_a_source.rows_per_epoch
        first = start + epoch * (n or 0)
        for g in range(first, first + rows if n is None else min(first + rows, (epoch + 1) * n)):
            heading = f"\nRow {g:,}" if n is None else f"\nRow {g % n:,} of {n:,}, epoch {epoch}"
            heading += f", {name}" if name else ""
            if split == "train":
                step = g // (config.train.batch_size * config.train.gradient_accumulation_steps)
                heading += f", in optimizer step {step:,}"
            console.out(heading, style="bold")
            segments = row_text(of_a_source, g, stores.tokenizer, mark_tokens=tokens)
            console.print(Segments(segments), soft_wrap=True, end="")


if __name__ == "__main__":
    define_config()
    flags.DEFINE_string("split", "train", "train or val.")
    flags.DEFINE_integer("epoch", 0, "Pass over the split: each has its own order.")
    flags.DEFINE_integer("rows", 3, "How many rows to show; 0: statistics only.")
    flags.DEFINE_integer("start", 0, "First row, in the order of the epoch.")
    flags.DEFINE_bool("tokens", False, "Mark the ends of tokens with |.")
    options = ("split", "epoch", "rows", "start", "tokens")
    run(lambda config: main(config, **{name: getattr(flags.FLAGS, name) for name in options}))
