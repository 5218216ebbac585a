"""Loss on the validation split, as it is measured between steps of training."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipeline.loader import BatchIterator
from data_pipeline.packing import evaluation_rows
from data_pipeline.token_store import TokenStore
from gptjax.metrics import aggregate
from gptjax.step.sharding import place_batch
from gptjax.step.train_step import StepFunctions


def evaluate(
    eval_step: Callable[[Any, Any], dict[str, jax.Array]], params: Any, batches: Iterable[Any]
) -> dict[str, float]:
    """Returns `loss`, `perplexity` and `bits_per_byte` over `batches`, sum divided by sum."""
    sums = [eval_step(params, batch) for batch in batches]  # dispatched without waiting
    return aggregate.average(jax.device_get(sums))


class Validation:
    """The validation rows of a run, held on the host: every evaluation sees the same ones."""

    def __init__(self, config: ConfigDict, store: TokenStore, steps: StepFunctions):
        """Reads the first `eval.eval_iters` batches of a fixed permutation of the split.

        A smaller split is read once: the rows past its end are masked out.
        """
        rows = evaluation_rows(config, store.split("val"), store.tokenizer)
        batch_size = config.train.batch_size
        whole = -(-rows.rows_per_epoch // batch_size)
        self.n_batches = min(config.eval.eval_iters, whole)
        iterator = BatchIterator(
            rows,
            batch_size=batch_size,
            micro_steps=1,
            host=jax.process_index(),
            n_hosts=jax.process_count(),
        )
        surplus = max(0, self.n_batches * batch_size - rows.rows_per_epoch)
        per_host = batch_size // jax.process_count()
        self._place = lambda batch: place_batch(steps.batch_sharding, batch)
        self._eval_step = steps.eval_step
        self._batches = [next(iterator) for _ in range(self.n_batches)]
        first_surplus = batch_size - surplus - jax.process_index() * per_host
        self._batches[-1]["loss_mask"][:, max(0, first_surplus) :] = False
        iterator.close()

    def run(self, params: Any) -> dict[str, float]:
        """Returns `loss`, `perplexity` and `bits_per_byte` of `params` on these rows."""
        return evaluate(self._eval_step, params, map(self._place, self._batches))
