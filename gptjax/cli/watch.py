"""Follows a run from another terminal: loss, speed, time left, the card, the last sample.

gptjax watch runs/quickstart
gptjax watch runs/quickstart --once

It reads what the run writes, and changes nothing. It waits for a run that has not begun, and ends
with the run, or with Ctrl-C. --once, or where there is no terminal: the state as it is, as text.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.live import Live
from rich.text import Text

from configs import cli
from configs.errors import UserError
from data_pipeline.progress import VISIBLE, format_seconds
from gptjax.cli import machine
from gptjax.cli.curve import draw
from gptjax.cli.follow import Follower

_HEIGHT = 10  # lines of the curve
_SAMPLE = 400  # characters
_SILENT = 60.0  # seconds without a line that are worth a word
_NUMBERS = (  # of a line: name, form
    ("train/loss", "train loss {:.4f}"),
    ("val/loss", "val loss {:.4f}"),
    ("val/bits_per_byte", "{:.4f} bits/byte"),
    ("optim/learning_rate", "lr {:.2e}"),
)
_SPEED = (
    ("perf/tokens_per_sec", "{:,.0f} tokens/s"),
    ("perf/mfu", "mfu {:.1%}"),
    ("data/wait_frac", "waiting for data {:.1%}"),
    ("data/epoch", "epoch {:.2f}"),
    ("optim/skipped_steps", "{:.0f} skipped steps"),
)


def state(run: Follower) -> str:
    """Returns a word: waiting, running, stopped or finished."""
    if run.is_running:
        return "running" if run.has_begun else "starting (preparing, compiling)"
    if not run.has_begun:
        return "not begun"
    return "finished" if run.is_finished else "stopped"


def lines(run: Follower, width: int, cards: list[machine.Card]) -> Iterator[str]:
    """Yields what is shown of a run."""
    word, n_steps = state(run), run.max_iters
    of = "" if n_steps is None else f"/{n_steps:,} ({run.step / max(1, n_steps):.0%})"
    yield f"{run.workdir}: step {run.step:,}{of}, {word}"
    if numbers := _values(run, _NUMBERS):
        best = min((value for _, value in run.curves.get("val/loss", ())), default=None)
        yield " | ".join(numbers) + ("" if best is None else f" | best val loss {best:.4f}")
    speed = _values(run, _SPEED)
    if word == "running" and run.seconds_left is not None:
        speed.append(f"{format_seconds(run.seconds_left)} left")
    if speed:
        yield " | ".join(speed)
    if word == "running" and run.silent_seconds > _SILENT:
        yield f"no new line for {format_seconds(run.silent_seconds)}"
    for i, card in enumerate(cards if word == "running" else ()):
        yield f"card {i}: {card.used_mib} of {card.memory_mib} MiB, busy {card.busy_percent} %"
    if curve := draw(run.curves.get("train/loss", ()), width, _HEIGHT):
        yield ""
        yield from curve
        yield f"train loss, step {run.curves['train/loss'][0][0]:,} to {run.step:,}"
    if sample := run.sample():
        step, text = sample
        yield ""
        yield f"sample of step {step:,}:"
        yield text[:_SAMPLE].rstrip().translate(VISIBLE) + ("..." if text[_SAMPLE:] else "")


def _values(run: Follower, forms: tuple[tuple[str, str], ...]) -> list[str]:
    numbers = ((run.last.get(name), form) for name, form in forms)
    return [form.format(value) for value, form in numbers if isinstance(value, int | float)]


def _main(_: list[str]) -> None:
    workdir, seconds = Path(flags.FLAGS.workdir), flags.FLAGS.seconds
    run = Follower(workdir)
    if flags.FLAGS.once or not sys.stdout.isatty():
        run.update()
        if not run.has_begun and not run.is_running:
            raise UserError(f"{workdir}: no run has begun there. Without --once, watch waits.")
        width = shutil.get_terminal_size().columns
        print("\n".join(lines(run, width, machine.cards())))
        return
    console = Console(highlight=False)
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            has_run = False
            while True:
                run.update()
                text = "\n".join(lines(run, console.width, machine.cards()))
                live.update(Text(text), refresh=True)
                has_run = has_run or run.is_running or run.has_begun
                if has_run and not run.is_running:
                    return
                time.sleep(seconds)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_bool("once", False, "Print the state as it is, and end.")
    flags.DEFINE_float("seconds", 2.0, "Between two looks.", lower_bound=0.1)
    cli.run_argv(_main, first="workdir")
