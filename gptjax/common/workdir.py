"""The folder of a run: its configuration, kept and read."""

import json
import logging
from pathlib import Path

from ml_collections import ConfigDict

from configs.errors import UserError
from configs.validate import leaves, unknown_keys
from configs.workdir import completed
from data_pipeline.files import write_atomically

_log = logging.getLogger(__name__)

_FILE = "config.json"


def save_config(config: ConfigDict, workdir: Path) -> None:
    """Writes the resolved configuration to `workdir/config.json`, atomically."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    write_atomically(workdir / _FILE, text.encode())


def load_config(workdir: Path) -> ConfigDict:
    """Reads `workdir/config.json`; keys that are newer than it have their defaults, and are logged.

    Raises:
        UserError: if it is missing or damaged, or has keys that are none.
    """
    path = workdir / _FILE
    if not path.is_file():
        raise UserError(
            f"{workdir} is not the workdir of a run: it has no {_FILE}. Give the folder that "
            f"`python -m gptjax.main` wrote to (config.workdir), for example runs/quickstart."
        )
    try:
        saved = json.loads(path.read_text())
        stored, config = leaves(ConfigDict(saved)), completed(saved)
    except (ValueError, TypeError, AttributeError) as error:  # no JSON, no object, a value's type
        raise UserError(
            f"{path} is damaged ({error}). Run gptjax.main with the run's configuration again: "
            f"it writes the file anew."
        ) from error
    if problems := unknown_keys(stored):
        raise UserError(f"{path} was written by another version: " + "; ".join(problems))
    if newer := [key for key in leaves(config) if key not in stored]:
        _log.info("%s is older than %s: they have their defaults", path, ", ".join(newer))
    return config
