"""Progress of long work, in lines or a bar."""

import logging
import sys
import time

from tqdm import tqdm

from gptjax.common.formatting import format_seconds

_log = logging.getLogger(__name__)
_LOG_SECONDS = 10.0  # between lines of progress where there is no terminal


class Progress:
    """A live bar on a terminal, a line of log now and then elsewhere: rate and time left."""

    def __init__(self, name: str | None, unit: str, total: int, batches: int):
        """Shows nothing without a name.

        Args:
            name: what is evaluated.
            unit: what is counted, in the plural.
            total: how many there are.
            batches: that they come in; each takes about the same time.
        """
        self._name, self._unit, self._total, self._batches = name, unit, total, batches
        self._done = self._batches_done = 0
        self._start = self._logged = time.monotonic()
        self._bar = tqdm(
            total=batches,
            desc=name,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {postfix}",
            disable=name is None or not sys.stderr.isatty(),
            leave=False,
        )

    def advance(self, n: int) -> None:
        """Counts a finished batch of `n`."""
        self._done += n
        self._batches_done += 1
        now = time.monotonic()
        seconds = now - self._start
        left = (self._batches - self._batches_done) / self._batches_done * seconds
        text = (
            f"{self._done:,} of {self._total:,} {self._unit}, {self._done / seconds:,.0f}/s, "
            f"{format_seconds(left)} left"
        )
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
        elif self._name is not None and now - self._logged > _LOG_SECONDS:
            self._logged = now
            _log.info("%s: %s", self._name, text)

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()
