"""The configuration of a run, read from its workdir: to resume it, or to train from its model.

Run `python -m gptjax.main --config=configs/workdir.py:runs/quickstart`.
"""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import base

CONFIG = "config.json"  # in every workdir


def get_config(workdir: str) -> ConfigDict:
    """Returns the `completed` configuration of `workdir`/config.json."""
    return completed(json.loads((Path(workdir) / CONFIG).read_text()))


def completed(saved: dict[str, Any]) -> ConfigDict:
    """Returns a saved configuration in which keys that are newer than it have their defaults.

    The default of a key is what runs did before the key existed. Unknown keys stay: the caller
    refuses them.
    """
    config = base.get_config()
    config.update(ConfigDict(saved))
    return config
