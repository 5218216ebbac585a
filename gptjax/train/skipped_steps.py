"""Steps that the optimizer's guard skipped: counted and reported with their documents."""

import logging
from typing import Any

import numpy as np
import optax
from ml_collections import ConfigDict

from configs.errors import UserError
from data_pipeline.packing import PackedRows
from gptjax.metrics.writers import MetricsWriter

_log = logging.getLogger(__name__)

_SHOWN = 20  # documents of a skipped step on the console; metrics.jsonl has all


class SkippedSteps:
    """The skipped steps of a run, over all restarts; too many in a row end it."""

    def __init__(self, train: ConfigDict, rows: PackedRows, writer: MetricsWriter, opt_state: Any):
        self.total = int(optax.tree.get(opt_state, "skipped"))
        self.in_a_row = int(optax.tree.get(opt_state, "in_a_row"))
        self._train = train
        self._rows = rows
        self._writer = writer

    def check(
        self, step: int, first_row: int, values: dict[str, float], nats_A: np.ndarray
    ) -> bool:
        """Returns whether `step` was skipped, after reporting it.

        `first_row` is the first packed row of its batch, `values` are its metrics, and `nats_A` is
        the summed loss of each micro-step.

        Raises:
            UserError: if it is the last of `train.max_consecutive_skips` in a row.
        """
        skipped = int(values["skipped"]) > self.total
        self.total, self.in_a_row = int(values["skipped"]), int(values["skipped_in_a_row"])
        if not skipped:
            return False
        loss, grad_norm = values["nats"] / values["n_targets"], values["grad_norm"]
        size = self._train.batch_size
        # The micro-steps without a finite loss, or else all of the batch.
        micro_steps = np.flatnonzero(~np.isfinite(nats_A)).tolist() or list(range(nats_A.size))
        documents = self._rows.document_ids(
            first_row + micro_step * size + row for micro_step in micro_steps for row in range(size)
        )
        _log.warning(
            "Step %d was skipped: loss %g, gradient norm %g; %d in all. Documents: %s%s",
            step,
            loss,
            grad_norm,
            self.total,
            ", ".join(documents[:_SHOWN]),
            f", ... {len(documents)} in all" if documents[_SHOWN:] else "",
        )
        self._writer.write(
            step,
            {
                "skipped/loss": loss,
                "skipped/grad_norm": grad_norm,
                "skipped/micro_steps": micro_steps,
                "skipped/documents": documents,
            },
        )
        if self.in_a_row >= self._train.max_consecutive_skips:
            raise UserError(
                f"step {step} is number {self.in_a_row} in a row that had to be skipped "
                f"(train.max_consecutive_skips): loss {loss:g}, gradient norm {grad_norm:g}. "
                f"This state was not saved, and training again from the last checkpoint fails in "
                f"the same way: start in another workdir with a lower "
                f"--config.optim.learning_rate or a longer --config.optim.warmup_iters; if these "
                f"are only spikes, continue with a higher --config.train.loss_spike_sigma. The "
                f"documents are in metrics.jsonl (skipped/documents)."
            )
        return True
