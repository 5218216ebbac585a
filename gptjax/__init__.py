"""Trains, evaluates and samples a GPT; `main.py` is where to start reading.

`gptjax.load(workdir)` opens a run in Python: see gptjax/api.py.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptjax.api import Run as Run
    from gptjax.api import load as load

__all__ = ["Run", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports the API when it is first used, so that commands need not load all of it."""
    if name in ("Run", "load"):
        from gptjax import api

        return getattr(api, name)
    raise AttributeError(f"module 'gptjax' has no attribute {name!r}")
