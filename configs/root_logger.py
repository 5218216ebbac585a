"""The root logger is the program's: what we import leaves it alone."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def unchanged_root_logger() -> Iterator[None]:
    """Removes the handlers that the imports of a `with` block add to the root logger.

    Orbax logs when it is imported, for which absl adds a handler if there is none. A script that
    sets up logging later, as `configs.cli.log_lines_by_default` does, would find it set up.
    """
    before = set(logging.root.handlers)
    try:
        yield
    finally:
        for handler in set(logging.root.handlers) - before:
            logging.root.removeHandler(handler)
