"""Loss and bits per byte over documents: the validation split, or other text."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import base
from configs.errors import UserError
from data_pipeline.packing import Documents, Row, Rows, permutation
from data_pipeline.prepare import complete_stores
from data_pipeline.progress import BatchProgress
from data_pipeline.sources.find import open_source
from data_pipeline.subset import evaluation_rows
from data_pipeline.token_store import TokenStore
from data_pipeline.tokenizer import Tokenizer
from gptjax.checkpoint import storage
from gptjax.common.one_ahead import one_ahead
from gptjax.common.workdir import CHECKPOINTS
from gptjax.inference import LoadedModel
from gptjax.inference.scoring import rows_per_batch, token_scores
from gptjax.metrics import aggregate


class Texts:
    """Documents in memory, 2 or 4 bytes a token; see `packing.Documents`."""

    def __init__(self, texts: Iterable[bytes | memoryview], tokenizer: Tokenizer):
        """Encodes texts in UTF-8."""
        tokens = (np.frombuffer(b"".join(tokenizer.encode_utf8(x)), tokenizer.dtype) for x in texts)
        self._documents = [np.insert(ids, 0, tokenizer.bos_id) for ids in tokens]
        self.n_docs = len(self._documents)
        self.doc_lengths = np.array([d.size for d in self._documents], np.int32)
        self.n_tokens = int(self.doc_lengths.sum(dtype=np.int64))

    def read(self, doc: int, start: int, stop: int) -> np.ndarray:
        """Returns tokens [start:stop) of document `doc`."""
        return self._documents[doc][start:stop]

    def doc_id(self, doc: int) -> str:
        """Returns a name for document `doc`."""
        return f"text {doc}"


def read_texts(
    source: str | Path, limit: int | None = None, name: str | None = None
) -> Iterator[bytes | memoryview]:
    """Yields the texts, in UTF-8, of what data.source can name, read with the default keys.

    With `limit`, a fixed random sample of its documents; with a `name`, progress is shown.

    Raises:
        UserError: there is no such source, or it holds no text or cannot be used.
    """
    data = base.get_config().data
    data.source = str(source)
    chunks = [chunk for file in open_source(data) for chunk in file.chunks]
    drawn = set(permutation(sum(chunk.rows for chunk in chunks), 0, 0)[:limit].tolist())
    first, n_texts = 0, 0  # number of the chunk's first row in the source
    with BatchProgress(name, "documents", len(drawn), len(chunks)) as progress:
        for chunk in chunks:
            wanted = drawn.intersection(range(first, first + chunk.rows))
            for document in chunk.read() if wanted else ():
                if first + document.row in wanted:
                    n_texts += 1
                    yield document.utf8
            first += chunk.rows
            progress.advance(len(wanted))
    if not n_texts:
        raise UserError(f"--text: {source} holds no text.")


def evaluate_documents(
    run: LoadedModel, documents: Documents, name: str | None = None, *, is_chat: bool = False
) -> dict[str, Any]:
    """Returns `loss` (nats per token), `perplexity`, `bits_per_byte`, and counts.

    Rows are packed as in training, and each token counts once. Each figure has a `_stderr` over
    documents (None for a single one): a target belongs to its document, BOS to the one it opens.
    The counts are `n_documents`, `n_tokens` and `n_bytes`. With a `name`, progress is shown. With
    `is_chat`, documents are conversations, and only what the assistant says counts.
    """
    rows = evaluation_rows(run.config, documents, run.tokenizer, is_chat=is_chat)
    n_all = rows.rows_per_epoch
    size = rows_per_batch(run.model_config.block_size)
    starts = range(0, n_all, size)
    nats, n_targets, n_bytes = (np.zeros(documents.n_docs) for _ in range(3))
    batches = ((start, _batch(rows, n_all, start, size)) for start in starts)
    dispatched = (
        (start, batch, token_scores(run.params, batch, model_config=run.model_config))
        for start, batch in batches
    )
    with BatchProgress(name, "tokens", documents.n_tokens, len(starts)) as progress:
        for start, batch, scores in one_ahead(dispatched):
            nats_BT = -jax.device_get(scores[0]).astype(np.float64)
            bytes_BT = run.tokenizer.token_bytes[batch["targets"]]
            n_rows = min(size, n_all - start)  # the rest only fills the batch
            for b in range(n_rows):
                mask_T = batch["loss_mask"][b]
                owners = _owners(rows, start + b, mask_T.size)[mask_T]
                np.add.at(nats, owners, nats_BT[b, mask_T])
                np.add.at(n_targets, owners, 1)
                np.add.at(n_bytes, owners, bytes_BT[b, mask_T])
            progress.advance(int(batch["loss_mask"][:n_rows].sum()))
    loss, loss_stderr = aggregate.ratio(nats, n_targets)
    bits, bits_stderr = aggregate.ratio(nats / math.log(2), n_bytes)
    perplexity = math.exp(min(loss, 700.0))  # beyond, a float overflows
    return {
        "loss": loss,
        "loss_stderr": loss_stderr,
        "perplexity": perplexity,
        "perplexity_stderr": None if loss_stderr is None else perplexity * loss_stderr,
        "bits_per_byte": bits,
        "bits_per_byte_stderr": bits_stderr,
        "n_documents": documents.n_docs,
        "n_tokens": int(n_targets.sum()),
        "n_bytes": int(n_bytes.sum()),
    }


def _batch(rows: Rows, n_rows: int, start: int, size: int) -> dict[str, np.ndarray]:
    """Returns rows start, start + 1, ... of the first epoch, and past its end its first again."""
    columns = zip(*(rows[g % n_rows] for g in range(start, start + size)), strict=True)
    named = zip(Row._fields, columns, strict=True)
    return {name: np.stack(arrays) for name, arrays in named if arrays[0] is not None}


def _owners(rows: Rows, g: int, block_size: int) -> np.ndarray:
    """Returns the document of each target of row `g` [T]: target i is the row's token i + 1.

    The final BOS, and padding, are of the last document.
    """
    spans = rows.spans(g)
    owners = np.full(block_size + 1, spans[-1].document)
    tokens = np.repeat([s.document for s in spans], [s.stop - s.start for s in spans])
    owners[: tokens.size] = tokens
    return owners[1:]


def validation_documents(
    run: LoadedModel, workdir: Path, folder: Path | None
) -> dict[str, Documents]:
    """Returns the validation split of each source of the run in `workdir`, by its name.

    The only source has no name. The splits are compared with their hashes. They are in the token
    store `folder`; None: in those of the default data.cache_dir whose content is what the run's
    checkpoint names, for the paths in a workdir can be another machine's.

    Raises:
        UserError: there is no such store, it is damaged, or of another tokenizer than the run's.
    """
    try:
        stores = {"": TokenStore.open(folder)} if folder else _stores_of_the_run(run, workdir)
        for store in stores.values():
            if store.tokenizer.hash != run.tokenizer.hash:
                raise UserError(f"{store.path} was made with another tokenizer than the run's.")
            store.verify("val")
    except UserError as error:
        raise UserError(
            f"the validation split is not available: {error}\nName a token store (--store=FOLDER, "
            f"which gptjax prepare prints) or evaluate without it: --noval, with other text "
            f"(--text=FILE) or benchmarks (--benchmarks=FOLDER)."
        ) from error
    return {name: store.split("val") for name, store in stores.items()}


def _stores_of_the_run(run: LoadedModel, workdir: Path) -> dict[str, TokenStore]:
    cache_dir = base.get_config().data.cache_dir
    meta = storage.read_meta(workdir / CHECKPOINTS / str(run.step))
    content = meta.get("store")  # an imported model has none
    named = {"": content} if content is None or meta.get("mixture") is None else content
    complete = list(complete_stores(cache_dir))
    stores = {}
    for name, content in named.items():
        found = (s for s in complete if content in (s.identity, {**s.identity, "hash": s.hash}))
        if (store := next(found, None)) is None:
            whose = f" for {name}" if name else ""
            raise UserError(
                f"no complete token store in {cache_dir} has the content of the run's{whose}."
            )
        stores[name] = store
    return stores
