"""Where the numbers go: metrics.jsonl, TensorBoard, optionally W&B, and the console."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from configs.flags import UserError
from data_pipeline.files import write_atomically
from gptjax.metrics import format_seconds

_log = logging.getLogger(__name__)

START = "run/start_step"  # written when a run starts or goes on, and at no other time


class MetricsWriter:
    """Writes scalars by step to every destination that the configuration names."""

    def __init__(self, workdir: Path, config: ConfigDict, start_step: int):
        """Opens the destinations; drops what a run cut short left in them beyond `start_step`.

        Raises:
            UserError: if `log.wandb` is set and the package is not installed.
        """
        self._path = workdir / "metrics.jsonl"
        _drop_later_steps(self._path, start_step)
        self._file = self._path.open("a")
        self._tensorboard: Any = None
        self._wandb: Any = None
        if config.log.tensorboard:
            import tensorboardX  # costs a second that runs without it need not pay

            self._tensorboard = tensorboardX.SummaryWriter(
                str(workdir / "tb"), purge_step=start_step + 1, write_to_disk=True
            )
        if config.log.wandb:
            try:
                import wandb
            except ImportError as error:
                raise UserError(
                    "log.wandb is True, but the package wandb is not installed: install the extra "
                    "(pip install 'gptjax[wandb]'), or set --config.log.wandb=False."
                ) from error
            self._wandb = wandb.init(
                project=config.log.wandb_project,
                name=workdir.name,
                dir=str(workdir),
                config=config.to_dict(),
                id=workdir.name,
                resume="allow",
            )

    def write(self, step: int, scalars: dict[str, float | None]) -> None:
        """Writes the scalars of one step; None stands for a value that is not known."""
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()
        known = {name: value for name, value in scalars.items() if value is not None}
        if self._tensorboard is not None:
            for name, value in known.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(known, step=step)

    def close(self) -> None:
        """Flushes and closes every destination."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _drop_later_steps(path: Path, last_step: int) -> None:
    """Keeps the lines of `path` up to `last_step`; drops a last line that was cut short, too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            _log.warning("%s: dropped a line that is not whole: %.60s", path, line)
    write_atomically(path, "".join(kept).encode())


class Console:
    """A live bar on a terminal, plain lines elsewhere."""

    def __init__(self, max_iters: int, start_step: int):
        """Shows `start_step` of `max_iters`."""
        self._max_iters = max_iters
        self._bar = tqdm(
            total=max_iters,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def advance(self, step: int, loss: float) -> None:
        """Moves the bar to `step`."""
        self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        self._bar.update(step - self._bar.n)

    def line(self, step: int, text: str) -> None:
        """Prints a line about `step`, above the bar where there is one."""
        text = f"step {step:>{len(str(self._max_iters))}}/{self._max_iters} | {text}"
        if self._bar.disable:
            _log.info("%s", text)
        else:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leaves the bar where it is."""
        self._bar.close()


def training_line(scalars: dict[str, float | None], eta_seconds: float) -> str:
    """Returns the console's line for the metrics of a training window."""
    mfu = scalars["perf/mfu"]
    return " | ".join(
        [
            f"train loss {scalars['train/loss']:.4f}",
            f"bits/byte {scalars['train/bits_per_byte']:.4f}",
            f"lr {scalars['optim/learning_rate']:.2e}",
            f"grad norm {scalars['optim/grad_norm']:.2f}",
            f"{scalars['perf/tokens_per_sec']:,.0f} tok/s",
            "mfu n/a" if mfu is None else f"mfu {mfu:.1%}",
            f"epoch {scalars['data/epoch']:.2f}",
            f"eta {format_seconds(eta_seconds)}",
        ]
    )
