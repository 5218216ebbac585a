"""How far an export is, whatever its format."""

from collections.abc import Iterator, Mapping

import numpy as np

from data_pipeline.progress import BatchProgress


def one_by_one(tensors: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the tensors to somebody who writes each, and shows how many parameters are written."""
    total = sum(tensor.size for tensor in tensors.values())
    with BatchProgress("exporting", "parameters", total, total, last_line=False) as bar:
        for tensor in tensors.values():
            yield tensor
            bar.advance(tensor.size, n_batches=tensor.size)
