"""Silences what Python prints about the arrays of a save that has failed already."""

import functools
import logging
import sys


@functools.cache
def silence_late_writes(unfinished: str) -> None:
    """Drops tracebacks of arrays that fail, or end, after Orbax has raised the first error.

    Orbax closes its event loop on it, while TensorStore still writes: as each write ends, it calls
    that loop, or leaves an error that nobody asks for. On a full disk there are some hundred. Such
    an error names a path, which holds `unfinished`.
    """
    previous = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            previous(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(lambda record: unfinished not in record.getMessage())
