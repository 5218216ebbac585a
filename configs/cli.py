"""The `--config` flag of every program: one file, any leaf overridden, all slips listed at once."""

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from configs.errors import UserError
from configs.validate import unknown_keys
from configs.workdir import CONFIG

_FOLDERS = {"config": "configs", "sweep": "benchmarks/sweeps"}  # of files, by the flag
_OVERRIDE = re.compile(r"--?config\.([\w.]+)")


def define_config(
    name: str = "config",
    text: str = "Configuration file, such as configs/quickstart.py.",
    *,
    default: str | None = None,
) -> None:
    """Defines `--config`; call it beside the program's other flags, before `run`.

    Args:
        name: of the flag.
        text: what --help says of it.
        default: a file of this folder; without one, the flag must be given.
    """
    file = default and str(Path(__file__).with_name(default))
    config_flags.DEFINE_config_file(name, file, text, lock_config=True)
    if file is None:
        flags.mark_flag_as_required(name)
    # absl's --help tells of the program's own flags, and would count this one as the library's.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def run(main: Callable[[ConfigDict], None], name: str = "config") -> None:
    """Parses the command line and calls `main(config)`; a `UserError` ends it with status 1."""
    app.run(lambda _: call(main, flags.FLAGS[name].value), flags_parser=_parse)


def call(main: Callable[..., None], *args: object) -> None:
    """Sets logging up, calls `main(*args)`; a `UserError` becomes a paragraph and exit status 1."""
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax tells much, and of what we tell, too
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for package in ("gptjax", "data_pipeline", "__main__"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        main(*args)
    except UserError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(1)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags, after looking for mistakes that absl would meet with a traceback."""
    problems = unknown_keys([m[1] for m in map(_OVERRIDE.match, argv) if m])
    for argument in argv:
        name, _, rest = argument.lstrip("-").partition("=")
        value, _, given = rest.partition(":")
        if name not in _FOLDERS:
            continue
        if not Path(value).is_file():
            files = sorted(f.as_posix() for f in Path(_FOLDERS[name]).glob("[a-z]*.py"))
            problems.append(f"--{name}={value} is no file (here are: {', '.join(files) or 'none'})")
        elif Path(value).name == "workdir.py" and not (Path(given) / CONFIG).is_file():
            problems.append(
                f"--config={value}:{given} must name the workdir of a run, which has a config.json "
                f"(for example --config={value}:runs/quickstart)"
            )
    if problems:
        print("error: " + "\n       ".join(problems), file=sys.stderr)
        sys.exit(2)
    return app.parse_flags_with_usage(argv)
