"""What a person sees while a run trains."""

import contextlib
import logging
import sys
from collections.abc import Mapping

import jax
from tqdm import tqdm

from gptjax.common.formatting import format_seconds

_log = logging.getLogger(__name__)


class Console:
    """A live bar on a terminal, plain lines elsewhere; process 0 shows them."""

    def __init__(self, max_iters: int, start_step: int):
        """Shows `start_step` of `max_iters`."""
        self._max_iters = max_iters
        self._silent = jax.process_index() > 0
        self._bar = tqdm(
            total=max_iters,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            disable=self._silent or not sys.stderr.isatty(),
        )

    def advance(self, step: int, loss: float) -> None:
        """Moves the bar to `step`."""
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            self._bar.update(step - self._bar.n)

    def line(self, step: int, text: str) -> None:
        """Prints a line about `step`, above the bar where there is one."""
        if self._silent:
            return
        text = f"step {step:>{len(str(self._max_iters))}}/{self._max_iters} | {text}"
        if self._bar.disable:
            _log.info("%s", text)
        else:
            with contextlib.suppress(OSError):
                self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leaves the bar where it is."""
        with contextlib.suppress(OSError):
            self._bar.close()


def training_line(values: Mapping[str, float | None], eta_seconds: float | None) -> str:
    """Returns the console's line for the metrics of a training window; n/a: not known."""

    def shown(name: str, form: str) -> str:
        value = values[name]
        return "n/a" if value is None else format(value, form)

    parts = [
        f"train loss {shown('train/loss', '.4f')}",
        f"bits/byte {shown('train/bits_per_byte', '.4f')}",
        f"lr {shown('optim/learning_rate', '.2e')}",
        f"grad norm {shown('optim/grad_norm', '.2f')}",
        f"{shown('perf/tokens_per_sec', ',.0f')} tok/s",
        f"mfu {shown('perf/mfu', '.1%')}",
        f"epoch {shown('data/epoch', '.2f')}",
        f"eta {'n/a' if eta_seconds is None else format_seconds(eta_seconds)}",
    ]
    if values["optim/skipped_steps"]:
        parts.append(f"skipped {shown('optim/skipped_steps', 'd')}")
    return " | ".join(parts)
