"""Progress of long work: a live bar on a terminal, log lines elsewhere."""

import contextlib
import logging
import sys
import threading
import time
from typing import IO, Any, Self, cast

from absl import logging as absl_logging
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

_log = logging.getLogger(__name__)

LOG_SECONDS = 10.0  # between log lines where there is no terminal
WAITING_SECONDS = 30.0  # the same, where nobody knows how far it is
_REFRESH_SECONDS = 0.1  # between two drawings of a bar
# Text of the web, or of a model, can have codes that move the cursor: they are shown, not obeyed.
VISIBLE = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n"}


def format_seconds(seconds: float) -> str:
    """Returns `4d 03h`, `3h 07m`, `2m 05s` or `12s`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02}h"
    if hours:
        return f"{h}h {m:02}m"
    return f"{m}m {s:02}s" if m else f"{s}s"


class _Terminal:
    """stderr without its errors: a program outlives the terminal that it was started in."""

    def __init__(self, file: IO[str]):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:
        """Leaves the cursor visible: a killed program could not restore it."""
        return False


class ProgressBar:
    """A live bar below the log lines on a terminal, nothing elsewhere, and nothing with --quiet.

    One that begins before another ends is a line below it.
    """

    _display: Progress | None = None  # of the bars that are shown now

    def __init__(
        self, name: str, total: int, done: int = 0, *, shown: bool = True, keep: bool = False
    ):
        """Shows `done` of `total`; `keep` leaves the bar on the screen when it is closed."""
        console = _Console(file=cast("IO[str]", _Terminal(sys.stderr)))
        self.is_live = (
            shown
            and _log.isEnabledFor(logging.INFO)
            and sys.stderr.isatty()
            and console.is_interactive
        )
        if not self.is_live:
            return
        self._drawn = 0.0
        self._is_first = ProgressBar._display is None
        if ProgressBar._display is not None:
            self._bar = ProgressBar._display
            self._task = self._bar.add_task(name, total=total, completed=done, text="")
            return
        self._bar = ProgressBar._display = Progress(
            TextColumn("{task.description}", markup=False),
            TaskProgressColumn(),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            auto_refresh=False,  # a thread would compete with the work
            redirect_stdout=False,
            redirect_stderr=False,  # absl's handler keeps the stderr that it started with
            transient=not keep,
        )
        self._task = self._bar.add_task(name, total=total, completed=done, text="")
        self._handler = absl_logging.get_absl_handler().python_handler
        self._stream = self._handler.stream
        if self._stream is sys.stderr:  # not a file of --log_dir
            self._handler.setStream(FileProxy(console, sys.stderr))
        self._bar.start()

    def update(self, done: int, text: str) -> None:
        """Moves the bar to `done` and shows `text` behind it."""
        if not self.is_live:
            return
        now = time.monotonic()
        refresh = now - self._drawn > _REFRESH_SECONDS
        if refresh:
            self._drawn = now
        self._bar.update(self._task, completed=done, text=text, refresh=refresh)

    def close(self) -> None:
        """Ends the live display."""
        if not self.is_live:
            return
        self.is_live = False
        if self._is_first:
            self._bar.stop()
            self._handler.setStream(self._stream)
            ProgressBar._display = None
        else:
            self._bar.remove_task(self._task)
            self._bar.refresh()


class Waiting:
    """A `with` block of which nobody knows how far it is, such as compilation.

    The seconds that have passed are shown on a terminal, and logged now and then elsewhere.
    """

    def __init__(self, name: str, *, before: float | None = None, shown: bool = True):
        """`before`: the seconds that the same took the last time; None: unknown."""
        self._name, self._before, self._shown = name, before, shown
        self._start = time.monotonic()
        self._end = threading.Event()

    def __enter__(self) -> Self:
        self._bar = ProgressBar(self._name, round(self._before or 0) or 1, shown=self._shown)
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()
        return self

    def _last_time(self) -> str:
        return "" if self._before is None else f" ({format_seconds(self._before)} the last time)"

    def _tick(self) -> None:
        seconds = 1.0 if self._bar.is_live else WAITING_SECONDS
        while not self._end.wait(seconds):
            passed = time.monotonic() - self._start
            done = min(passed, 0.99 * (self._before or 0.0))  # not all before its end
            self._bar.update(round(done), f"{format_seconds(passed)}{self._last_time()}")
            if self._shown and not self._bar.is_live:
                _log.info("%s: %s%s", self._name, format_seconds(passed), self._last_time())

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._bar.close()

    @property
    def seconds(self) -> float:
        """The seconds since the beginning."""
        return time.monotonic() - self._start


class BatchProgress:
    """Work that is done in batches: how much, how fast, time left.

    Batches take about the same time each, or a time in proportion to what `advance` counts them as.

    Where there is no terminal, a line is logged every `LOG_SECONDS` and at the end.
    """

    def __init__(
        self,
        name: str | None,
        unit: str,
        total: int,
        n_batches: int,
        *,
        done: int = 0,
        last_line: bool = True,
    ):
        """Reports nothing without a name; `done` of `total` units are no part of the batches.

        Without `last_line`, none is logged at the end: somebody else reports the result.
        """
        self._last_line = last_line
        self._name, self._unit, self._total, self._n_batches = name, unit, total, n_batches
        self._first, self._done, self._batches_done, self._bytes = done, done, 0, 0
        self._start = self._logged = time.monotonic()
        self._bar = ProgressBar(name or "", total, done, shown=name is not None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, n: int, n_bytes: int = 0, n_batches: int = 1) -> None:
        """Counts finished batches of `n` units; with `n_bytes`, the rate is in MB/s."""
        self._done += n
        self._bytes += n_bytes
        self._batches_done += n_batches
        if self._name is None:
            return
        now = time.monotonic()
        seconds = max(now - self._start, 1e-9)
        rate = f"{(self._done - self._first) / seconds:,.0f}/s"
        if self._bytes:
            rate = f"{self._bytes / 1e6 / seconds:.1f} MB/s"
        left = (self._n_batches / self._batches_done - 1) * seconds
        text = (
            f"{self._done:,} of {self._total:,} {self._unit}, {rate}, {format_seconds(left)} left"
        )
        self._bar.update(self._done, text)
        is_last = self._last_line and self._batches_done == self._n_batches
        if not self._bar.is_live and (is_last or now - self._logged > LOG_SECONDS):
            self._logged = now
            _log.info("%s: %s", self._name, text)
