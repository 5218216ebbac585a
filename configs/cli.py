"""The command line of every program: the `--config` flag, all mistakes listed at once, `--help`."""

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

_FOLDERS = {"config": "configs", "sweep": "benchmarks/sweeps"}  # flag -> folder of its files
_OVERRIDE = re.compile(r"--?config\.([\w.]+)")


def define_config(
    name: str = "config",
    text: str = "Configuration file, such as configs/quickstart.py.",
    *,
    default: str | None = None,
) -> None:
    """Defines `--config`, or a flag `name` like it, with the help `text`; call it before `run`.

    Without `default`, a file of this folder, the flag is required.
    """
    file = default and str(Path(__file__).with_name(default))
    config_flags.DEFINE_config_file(name, file, text, lock_config=True)
    if file is None:
        flags.mark_flag_as_required(name)
    # --help lists the flags of the program's own module; this one would count as the library's.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def run(main: Callable[[ConfigDict], None], name: str = "config") -> None:
    """Parses the command line and calls `main(config)` with the value of the flag `name`.

    Exit status: 0 after --help, 1 after a `UserError` or an unknown flag, 2 after an unknown key.
    """
    app.run(lambda _: call(main, flags.FLAGS[name].value), flags_parser=_parse_config)


def run_argv(main: Callable[[list[str]], None]) -> None:
    """Does the same for a program without --config: `main` gets what is not a flag, as sys.argv."""
    app.run(lambda argv: call(main, argv), flags_parser=_parse)


def call(main: Callable[..., None], *args: object) -> None:
    """Sets up logging and calls `main(*args)`; a `UserError` is printed, with exit status 1."""
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs each save, which gptjax logs too
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
    """Parses the flags; the exit status of --help is 0, where absl has 1."""
    try:
        return app.parse_flags_with_usage(argv)
    except SystemExit as stop:
        if isinstance(stop.__context__, flags.Error):
            raise
    if "config" in flags.FLAGS and not {"--helpxml", "--only_check_flags"} & set(argv):
        from configs.help import describe_keys  # only now: programs start faster without it

        print("\n" + describe_keys())
    sys.exit(0)


def _parse_config(argv: list[str]) -> list[str]:
    """Parses the flags, after a check for mistakes that absl would report with a traceback."""
    problems = unknown_keys(m[1] for m in map(_OVERRIDE.match, argv) if m)
    for argument in argv:
        name, _, rest = argument.lstrip("-").partition("=")
        value, _, workdir = rest.partition(":")
        if name not in _FOLDERS:
            continue
        if not Path(value).is_file():
            files = sorted(f.as_posix() for f in Path(_FOLDERS[name]).glob("[a-z]*.py"))
            problems.append(
                f"--{name}={value} is no file (available: {', '.join(files) or 'none'})"
            )
        elif Path(value).name == "workdir.py" and not (Path(workdir) / CONFIG).is_file():
            problems.append(
                f"--config={value}:{workdir} must name the workdir of a run, which has a "
                f"{CONFIG} (for example --config={value}:runs/quickstart)"
            )
    if problems:
        print("error: " + "\n       ".join(problems), file=sys.stderr)
        sys.exit(2)
    return _parse(argv)
