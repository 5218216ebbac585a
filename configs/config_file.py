"""Executes a configuration file; what fails there is reported with the line of the file."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader

from ml_collections import ConfigDict

from configs.errors import UserError

_MODULE = "gptjax_configuration_file"  # its name in sys.modules, where dataclasses look it up


def load(path: str, *arguments: str) -> ConfigDict:
    """Returns what `get_config(*arguments)` of the Python file at `path` returns.

    The file can import what is in the current folder, as with `python -m`.

    Raises:
      UserError: that is no ConfigDict, or an exception was raised: with its line and reason, and
        unless it is about syntax the traceback from the file on. A UserError stays as it is.
    """
    loader = SourceFileLoader(_MODULE, path)
    spec = spec_from_loader(_MODULE, loader)
    assert spec is not None  # for it has a loader
    module = sys.modules[_MODULE] = module_from_spec(spec)
    try:
        with _importable(os.getcwd()):
            loader.exec_module(module)
            if not hasattr(module, "get_config"):
                raise UserError(
                    f"{path} has no function get_config(), which returns what it declares."
                )
            config = module.get_config(*arguments)
    except UserError:
        raise
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        text = f": {error.text.strip()}" if error.text else ""
        raise UserError(f"{error.filename or path}{line}: {error.msg}{text}") from error
    except Exception as error:
        raise UserError(_report(path, error)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returns {config!r:.40} and no ConfigDict.")
    return config


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    """Lets modules in `folder` be imported, after all others: it can hide no package."""
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _report(path: str, error: Exception) -> str:
    """Returns the line of the file that has led to `error`, the reason, and how it came to it."""
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename != path:
        frames = frames.tb_next
    lines = [frame.lineno for frame in traceback.extract_tb(frames) if frame.filename == path]
    reason = f"{type(error).__name__}: {error}"
    if not lines:  # of the call of get_config
        return f"{path}: {reason}"
    calls = "".join(traceback.format_exception(type(error), error, frames))
    return f"{path}, line {lines[-1]}: {reason}\n\n{calls}"
