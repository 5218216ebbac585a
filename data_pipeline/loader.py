"""Rows -> batches through Grain: this host's part of each global batch, read ahead.

Batch s holds rows s*R .. s*R + R - 1 of a sequence, R = micro-steps x batch size, whatever the
number of hosts, threads or batches read ahead. The iterator's state is one number: rows consumed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from configs.root_logger import unchanged_root_logger
from data_pipeline.packing import Rows

with unchanged_root_logger():
    import grain  # imports Orbax

Batch = dict[str, np.ndarray]

_ENDLESS = 2**48  # rows: Grain needs a length, and the sequence is endless


class BatchIterator:
    """Endless batches of arrays [A, B / hosts, T], named as in `packing.Row`."""

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        micro_steps: int,
        state: dict[str, int] | None = None,
        host: int = 0,
        n_hosts: int = 1,
        prefetch: int = 0,
        place: Callable[[Batch], Any] | None = None,
    ):
        """Starts at `state`, or at the first row.

        Args:
            rows: the sequence of rows.
            batch_size: B, over all hosts; ValueError where they cannot share it evenly.
            micro_steps: A.
            state: `state` of an earlier iterator over the same rows.
            prefetch: batches to read ahead in a background thread, and to place ahead in another.
            place: called with each batch, such as a transfer to the device.
        """
        self._rows_per_batch = micro_steps * batch_size
        self._next_row = 0 if state is None else state["next_row"]
        if batch_size % n_hosts:
            raise ValueError(f"batch_size = {batch_size} must be a multiple of the {n_hosts} hosts")
        per_host = batch_size // n_hosts  # of each micro-batch
        first_row = self._next_row + host * per_host

        def read_row(i: int) -> Batch:
            micro_batch, row = divmod(int(i), per_host)
            packed = rows[first_row + micro_batch * batch_size + row]
            return {name: a for name, a in packed._asdict().items() if a is not None}

        def fold(batch: Batch) -> Batch:
            return {k: a.reshape(micro_steps, -1, a.shape[-1]) for k, a in batch.items()}

        dataset = grain.MapDataset.range(_ENDLESS).map(read_row).batch(micro_steps * per_host)
        # Rows come from a memory map: Grain's own reader threads cost more than they hide.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        batches = dataset.to_iter_dataset(options)
        for function in (fold, place) if place else (fold,):
            batches = batches.map(function)
            if prefetch:
                ahead = grain.experimental.ThreadPrefetchIterDataset
                batches = ahead(batches, prefetch_buffer_size=prefetch)
        self._batches = iter(batches)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._next_row += self._rows_per_batch
        return batch

    @property
    def state(self) -> dict[str, int]:
        """Where the next batch starts: an iterator of any batch size can resume from it."""
        return {"next_row": self._next_row}

    def close(self) -> None:
        """Ends the threads that read ahead."""
        if close := getattr(self._batches, "close", None):
            close()
