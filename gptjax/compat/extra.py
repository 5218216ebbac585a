"""Packages of the extra `export`."""

import importlib
from typing import Any

from configs.errors import UserError


def require(module: str) -> Any:
    """Returns an imported module; UserError if its package is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this needs the package {module.partition('.')[0]}, which is not installed: install "
            f"the extra (pip install 'gptjax[export]')."
        ) from error
