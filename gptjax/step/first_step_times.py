"""How long the first step of a run took the last time, kept beside the compiled programs."""

import contextlib
import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from configs.errors import DataError
from configs.read import MIB, read_json
from data_pipeline.files import hash_json, write_atomically

_FILE = "first-steps.json"  # in the folder of the compilation cache
_MAX_ENTRIES = 500


class FirstStepTime:
    """The seconds that runs of one size took here to compile and make their first step.

    The next one takes as long, or less, where JAX finds the program in its cache.
    """

    def __init__(self, config: ConfigDict, row_length: int):
        """Reads what is known of runs with the model, the batch and the devices of this one."""
        parts = [config.model.to_dict(), config.train.batch_size, config.optim.optimizer]
        parts += [config.train.gradient_accumulation_steps, config.mesh.to_dict(), jax.__version__]
        parts += [row_length, list(config.train.later_tokens), config.train.teacher]
        device = jax.devices()[0]
        self._key = hash_json([*parts, device.device_kind, jax.device_count()])[:16]
        folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        self._path = Path(folder) / _FILE if folder else None
        self.seconds = self._read().get(self._key)  # None: unknown

    def _read(self) -> dict[str, float]:
        try:
            known: dict[str, float] = read_json(self._path, MIB, {str: float}) if self._path else {}
        except DataError:  # none yet, or damaged: it is written again
            return {}
        return known

    def keep(self, seconds: float) -> None:
        """Keeps the duration for the next run."""
        if self._path is None or jax.process_index() > 0:
            return
        known = {k: v for k, v in self._read().items() if k != self._key}
        known[self._key] = round(seconds, 1)
        newest = dict(list(known.items())[-_MAX_ENTRIES:])
        with contextlib.suppress(OSError):  # as JAX, which then compiles every time
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(newest).encode())
