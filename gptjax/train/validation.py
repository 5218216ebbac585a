"""Loss on the validation split, as it is measured between steps of training."""

import time
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipeline.loader import BatchIterator
from data_pipeline.subset import validation_rows
from data_pipeline.token_store import TokenStore
from gptjax.metrics import average
from gptjax.step import StepFunctions, place_batch


class Validation:
    """The validation rows of a run, kept on the host: every evaluation uses the same ones."""

    def __init__(self, config: ConfigDict, store: TokenStore, steps: StepFunctions):
        """Reads the first `eval.eval_iters` batches of a fixed permutation of the split.

        A smaller split is read once: the rows past its end are masked out.
        """
        rows = validation_rows(config, store)
        batch_size = config.train.batch_size
        self.n_batches = min(config.eval.eval_iters, -(-rows.rows_per_epoch // batch_size))
        self.n_rows = min(self.n_batches * batch_size, rows.rows_per_epoch)  # over all hosts
        iterator = BatchIterator(
            rows,
            batch_size=batch_size,
            micro_steps=1,
            host=jax.process_index(),
            n_hosts=jax.process_count(),
        )
        self._steps = steps
        self._batches = [next(iterator) for _ in range(self.n_batches)]
        iterator.close()
        first_row = (self.n_batches - 1) * batch_size  # of the last batch, over all hosts
        first_row += jax.process_index() * (batch_size // jax.process_count())
        self._batches[-1]["loss_mask"][:, max(0, rows.rows_per_epoch - first_row) :] = False

    def seconds_per_batch(self, params: Any) -> float:
        """Returns the duration of one batch once it is compiled, which the first one is not."""
        for _ in range(2):
            start = time.monotonic()
            batch = place_batch(self._steps.batch_sharding, self._batches[0])
            jax.block_until_ready(self._steps.eval_step(params, batch))
        return time.monotonic() - start

    def run(self, params: Any) -> dict[str, float]:
        """Returns `loss`, `perplexity` and `bits_per_byte` of `params` on these rows."""
        sums = [  # dispatched without waiting
            self._steps.eval_step(params, place_batch(self._steps.batch_sharding, batch))
            for batch in self._batches
        ]
        return average(jax.device_get(sums))
