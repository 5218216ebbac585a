"""A run in Weights & Biases: asked for before the data is prepared, and never needed to train.

Where W&B fails, that is logged and training continues: metrics.jsonl and TensorBoard have it all.
"""

import functools
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipeline.files import write_atomically
from gptjax.common.workdir import WANDB_ID

_log = logging.getLogger(__name__)


def problems(log: ConfigDict) -> list[str]:
    """Returns what is wrong with `log.wandb` at the start of a run; logs a missing login."""
    if not log.wandb:
        return []
    try:
        import wandb
    except ImportError:
        return [
            "log.wandb is True, but the package wandb is not installed: install the extra "
            "(pip install 'gptjax[wandb]'), or set --config.log.wandb=False"
        ]
    if jax.process_index() == 0:
        _is_ready(wandb)
    return []


@functools.cache  # asked, and warned about, once a process
def _is_ready(wandb: Any) -> bool:
    """Returns whether W&B takes metrics: there is a valid login, or it is offline on purpose."""
    reason = "you are not logged in"
    try:
        if wandb.setup().settings.mode in ("offline", "disabled"):
            return True
        if wandb.login(prompt=False):  # a prompt would wait for ever for somebody who has left
            return True
    except Exception as error:  # no network, a wrong key, ...
        reason = str(error)
    _log.warning(
        "log.wandb: %s, so this run is NOT sent to Weights & Biases. To send it, stop it now, run "
        "`wandb login` (or set WANDB_MODE=offline and run `wandb sync` later) and start it again.",
        reason,
    )
    return False


class WandbRun:
    """What W&B shows of a run: one for each workdir, over all restarts."""

    def __init__(self, workdir: Path, config: ConfigDict):
        """Starts or resumes it; does nothing, now and later, where W&B cannot be used."""
        import wandb

        self._run: Any = None
        if not _is_ready(wandb):
            return
        file = workdir / WANDB_ID
        if not file.exists():
            write_atomically(file, secrets.token_hex(8).encode())
        try:
            self._run = wandb.init(
                project=config.log.wandb_project,
                name=workdir.name,
                dir=str(workdir),
                config=config.to_dict(),
                id=file.read_text(),
                resume="allow",
            )
        except Exception as error:
            self._give_up(error)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the values of one step."""
        try:
            if self._run is not None:
                self._run.log(values, step=step)
        except Exception as error:
            self._give_up(error)

    def finish(self) -> None:
        """Waits until all is sent."""
        try:
            if self._run is not None:
                self._run.finish()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        _log.error("Weights & Biases failed (%s): training continues without it.", error)
