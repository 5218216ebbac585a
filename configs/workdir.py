"""The configuration of a run, read from its workdir: to go on with it, or from its model.

Run `python -m gptjax.main --config=configs/workdir.py:runs/quickstart`.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs import base


def get_config(workdir: str) -> ConfigDict:
    """Returns what `workdir`/config.json says; keys that are newer than it have their defaults."""
    config = base.get_config()
    config.update(ConfigDict(json.loads((Path(workdir) / "config.json").read_text())))
    return config
