"""Loss on the validation split, as it is measured between steps of training."""

import time
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipeline.loader import Batch, BatchIterator
from data_pipeline.progress import BatchProgress
from data_pipeline.subset import validation_rows
from data_pipeline.token_store import Stores, TokenStore
from gptjax.metrics import average, scaled
from gptjax.step import StepFunctions, place_batch


class Validation:
    """The validation rows of a run, kept on the host: every evaluation uses the same ones."""

    def __init__(self, config: ConfigDict, stores: Stores, steps: StepFunctions):
        """Reads the first `eval.eval_iters` batches of a fixed permutation of each source's split.

        A smaller split is read once: the rows past its end are masked out.
        """
        self.model_config = steps.model_config
        self._steps = steps
        self._shares = [1.0] if stores.mixture is None else stores.mixture.shares
        self._batches: dict[str, list[Batch]] = {}  # by source
        self.n_rows = 0  # over all hosts
        for name, store in stores.sources.items():
            self._batches[name], n_rows = _read(config, store)
            self.n_rows += n_rows

    def seconds_per_batch(self, params: Any) -> float:
        """Returns the duration of one batch once it is compiled, which the first one is not."""
        for _ in range(2):
            start = time.monotonic()
            jax.block_until_ready(self._dispatch(params, next(iter(self._batches.values()))[0]))
        return time.monotonic() - start

    def run(self, params: Any) -> dict[str, float]:
        """Returns `loss`, `perplexity` and `bits_per_byte` of `params` on these rows.

        Of a mixture, that is where each source has its share in data.mixture of the tokens, and
        besides `SOURCE/loss` and so on of each.
        """
        dispatched = {
            name: [self._dispatch(params, batch) for batch in batches]  # without waiting
            for name, batches in self._batches.items()
        }
        n_batches = sum(map(len, dispatched.values()))
        name = "evaluation" if jax.process_index() == 0 else None
        sums: dict[str, list[Any]] = {name: [] for name in dispatched}
        with BatchProgress(name, "batches", n_batches, n_batches, last_line=False) as progress:
            for source, batches in dispatched.items():
                for metrics in batches:
                    sums[source].append(jax.device_get(metrics))
                    progress.advance(1)
        if len(sums) == 1:
            return average(*sums.values())
        weighted = map(scaled, sums.values(), self._shares)
        by_source = {
            f"{name}/{metric}": value
            for name, of_a_source in sums.items()
            for metric, value in average(of_a_source).items()
        }
        return {**average(list(weighted)), **by_source}

    def _dispatch(self, params: Any, batch: Batch) -> Any:
        return self._steps.eval_step(params, place_batch(self._steps.batch_sharding, batch))


def _read(config: ConfigDict, store: TokenStore) -> tuple[list[Batch], int]:
    """Returns this host's batches of a validation split, and their rows over all hosts."""
    rows = validation_rows(config, store)
    batch_size = config.train.batch_size
    n_batches = min(config.eval.eval_iters, -(-rows.rows_per_epoch // batch_size))
    iterator = BatchIterator(
        rows,
        batch_size=batch_size,
        micro_steps=1,
        host=jax.process_index(),
        n_hosts=jax.process_count(),
    )
    batches = [next(iterator) for _ in range(n_batches)]
    iterator.close()
    first_row = (n_batches - 1) * batch_size  # of the last batch, over all hosts
    first_row += jax.process_index() * (batch_size // jax.process_count())
    batches[-1]["loss_mask"][:, max(0, rows.rows_per_epoch - first_row) :] = False
    return batches, min(n_batches * batch_size, rows.rows_per_epoch)
