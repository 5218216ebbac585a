"""Packages of the optional extras."""

import contextlib
from collections.abc import Iterator

from configs.errors import UserError


@contextlib.contextmanager
def imports_of_extra(extra: str) -> Iterator[None]:
    """Raises UserError, with what to install, where an import in the `with` block fails."""
    try:
        yield
    except ImportError as error:
        reason = str(error)
        if error.name:
            reason = (
                f"this needs the package {error.name.partition('.')[0]}, which is not installed"
            )
        raise UserError(f"{reason}: install the extra (pip install 'gptjax[{extra}]').") from error
