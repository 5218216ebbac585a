"""One run at a time in a workdir."""

from pathlib import Path

from configs.errors import UserError
from data_pipeline.lock import FileLock, Held
from gptjax.common.workdir import LOCK


class WorkdirLock(FileLock):
    """Holds `workdir/lock` from construction to `release` or the death of the process."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        super().__init__(workdir / LOCK)

    def ensure(self) -> None:
        """Takes the lock as FileLock does; a UserError says which other run holds it."""
        try:
            super().ensure()
        except Held as holder:
            raise UserError(
                f"{self._workdir} is in use by another run ({holder}): two would overwrite each "
                f"other's files. Wait for it, stop it with kill -TERM and its process id, or give "
                f"this run another workdir (--config.workdir=...)."
            ) from None
