"""The configuration of a run, read from its workdir: to go on with it, or from its model.

Run `python -m gptjax.main --config=configs/workdir.py:runs/quickstart`.
"""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import base

CONFIG = "config.json"  # of every workdir


def get_config(workdir: str) -> ConfigDict:
    """Returns what `workdir`/config.json says, `completed`."""
    return completed(json.loads((Path(workdir) / CONFIG).read_text()))


def completed(saved: dict[str, Any]) -> ConfigDict:
    """Returns a saved configuration with the keys of today: those it lacks have their defaults.

    The default of a key is how runs were before there was the key. Keys that are none of today's
    stay, for the caller to refuse.
    """
    config = base.get_config()
    config.update(ConfigDict(saved))
    return config
