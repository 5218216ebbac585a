"""Trains, evaluates and samples a GPT; `main.py` is where to start reading.

`gptjax.load(workdir)` opens a run in Python: see gptjax/api.py.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptjax.api import Run as Run
    from gptjax.api import load as load

__all__ = ["Run", "__version__", "load"]
__version__ = "0.1.0"

# A wheel has configs and data_pipeline in here, so that it installs no other name than gptjax's
# (setup.py). They come first: also where the current folder has a `configs` of its own.
_PACKAGES = Path(__file__).with_name("_packages")
if _PACKAGES.is_dir() and str(_PACKAGES) not in sys.path:
    sys.path.insert(0, str(_PACKAGES))


def __getattr__(name: str) -> Any:
    """Imports the API when it is first used, so that commands need not load all of it."""
    if name in ("Run", "load"):
        from gptjax import api

        return getattr(api, name)
    raise AttributeError(f"module 'gptjax' has no attribute {name!r}")
