"""The command line of every program: the configuration, all mistakes listed at once, `--help`.

A configuration file is given as `--config=FILE`, `--config FILE` or `FILE`, a key of it as
`--config.KEY=VALUE` or `KEY=VALUE`, in any order. FILE is a path, or the name of a file of this
folder: `rtx4070`. An argument that no program uses is refused.
"""

import functools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from configs import base, config_file
from configs.errors import UserError
from configs.read import os_reason
from configs.validate import keys_like, leaves, unknown_keys
from configs.workdir import CONFIG, unused

_BUNDLED = Path(__file__).parent
_SWEEPS = "benchmarks/sweeps"  # of a checkout
_NAME = re.compile(r"\w+")  # of a bundled file: neither a path nor a file with its suffix
_PACKAGES = ("configs", "data_pipeline", "gptjax")
_HELP = ("--help", "-help", "-h", "-?")


def define_config(
    name: str = "config",
    text: str = "Configuration: a name, such as quickstart, or a file, such as mine.py.",
    *,
    default: str | None = None,
) -> None:
    """Defines `--config`, or a flag `name` like it, with the help `text`; call it before `run`.

    Without `default`, a file of this folder, the flag is required.
    """
    file = default and str(Path(__file__).with_name(default))
    config_flags.DEFINE_config_file(name, file, text, lock_config=True)
    flags.FLAGS[name].parser = _FileParser()
    if file is None:
        flags.mark_flag_as_required(name)
    # --help lists the flags of the program's own module; this one would count as the library's.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def run(main: Callable[[ConfigDict], None], name: str = "config") -> None:
    """Parses the command line and calls `main(config)` with the value of the flag `name`.

    Exit status: 0 after --help, 1 after a `UserError` or an unknown flag, 2 after an unknown key or
    another argument that is not used.
    """
    parser = functools.partial(_parse_config, name=name)
    _define_quiet()
    app.run(lambda _: call(main, flags.FLAGS[name].value), flags_parser=parser)


def run_argv(
    main: Callable[[list[str]], None], *, positional: bool = False, first: str | None = None
) -> None:
    """Does the same for a program without --config: `main` gets what is not a flag, as sys.argv.

    That is refused here unless `positional`: then `main` uses or refuses it. The first such
    argument is the value of the flag `first`, where that is not given.
    """
    parse = _parse if positional else _parse_flags

    def parser(argv: list[str]) -> list[str]:
        return parse([argv[0], *_name_first(_underscored(argv[1:]), first)])

    _define_quiet()
    app.run(lambda argv: call(main, argv), flags_parser=parser)


def call(main: Callable[..., None], *args: object) -> None:
    """Sets up logging and calls `main(*args)`.

    A `UserError`, or an OSError with its file and reason, is printed, with exit status 1.
    """
    log_lines(quiet="quiet" in flags.FLAGS and bool(flags.FLAGS["quiet"].value))
    try:
        main(*args)
    except (UserError, OSError) as error:
        print(f"\nerror: {paragraph(error)}", file=sys.stderr)
        sys.exit(1)


def log_lines(*, quiet: bool = False) -> None:
    """Shows the log on stderr as lines with the time; if `quiet`, warnings and errors only."""
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs each save, which gptjax logs too
    absl_logging.use_absl_handler()
    format_log()
    for package in (*_PACKAGES, "__main__"):
        logging.getLogger(package).setLevel(logging.WARNING if quiet else logging.INFO)


def log_lines_by_default() -> None:
    """Does so in a script that has not set up logging itself."""
    others = set(logging.getLogger().handlers) - {absl_logging.get_absl_handler()}
    if not others and logging.getLogger("gptjax").level == logging.NOTSET:
        if not flags.FLAGS.is_parsed():  # else absl warns that they are not
            flags.FLAGS.mark_as_parsed()
        log_lines()


def format_log(label: str = "") -> None:
    """Makes each line of the log begin with the time and `label`."""
    formatter = logging.Formatter(f"%(asctime)s {label}%(message)s", "%H:%M:%S")
    absl_logging.get_absl_handler().setFormatter(formatter)


def paragraph(error: UserError | OSError) -> str:
    """Returns what is printed of an error: of an OSError its file and the reason."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    return (
        f"{os.fsdecode(error.filename)}: {os_reason(error)}. Check the path, its permissions and "
        "the disk."
    )


def define_compilation_cache_dir() -> None:
    """Defines the flag of that name, for a program without --config."""
    flags.DEFINE_string(
        "compilation_cache_dir",
        base.get_config().compilation_cache_dir,
        "Folder that keeps compiled programs, so that the next start is quick.",
    )


class _FileParser(flags.ArgumentParser):
    """Parses FILE or FILE:ARGUMENT, as config_flags does, with messages for people."""

    def parse(self, argument: str) -> ConfigDict:
        try:
            config = config_file.load(*argument.split(":", 1))
        except UserError as error:
            raise flags.Error(str(error)) from error  # a ValueError becomes one about the flag
        config.lock()
        return config


def _define_quiet() -> None:
    flags.DEFINE_bool("quiet", False, "No progress and no log but warnings and errors.")


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; the exit status of --help is 0, where absl has 1.

    What is behind --help, and no flag, are the keys that it explains.
    """
    arguments, topics = argv, list[str]()
    if asked := next((i for i, argument in enumerate(argv) if argument in _HELP), None):
        arguments, topics = [argv[0], "--help"], [a for a in argv[asked:] if not a.startswith("-")]
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # of `| head`
        _list_shared_flags(program=argv[0])
    if not topics or "config" not in flags.FLAGS:
        try:
            return flags.FLAGS(arguments)
        except flags.Error as error:
            _exit_if([_meaning(line) for line in str(error).splitlines()], status=1)
        except SystemExit:  # of --help
            pass
    if "config" in flags.FLAGS and not {"--helpxml", "--only_check_flags"} & set(argv):
        from configs.help import explain_keys, list_keys  # only now: programs start faster

        print(explain_keys(topics) if topics else "\n" + list_keys())
    sys.exit(0)


def _list_shared_flags(program: str) -> None:
    """Makes --help list what other modules of ours define for a program, as absl does not."""
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.partition(".")[0] in _PACKAGES:
            for flag in defined:
                flags.FLAGS.register_key_flag_for_module(program, flag)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags, and refuses everything else."""
    program, *unused = _parse(argv)
    problems = []
    for argument in unused:
        is_flag = "=" in argument and argument.partition("=")[0] in flags.FLAGS
        hint = f" (did you mean --{argument}?)" if is_flag else ""
        problems.append(f"{argument!r} is not used: see --help{hint}")
    _exit_if(problems)
    return [program]


def _underscored(arguments: list[str]) -> list[str]:
    """Returns the arguments with `--push_to` for `--push-to`, which absl does not know."""

    def underscored(argument: str) -> str:
        flag, equals, value = argument.partition("=")
        name = flag.lstrip("-").replace("-", "_")
        is_flag = flag.startswith("-") and name in flags.FLAGS
        return f"--{name}{equals}{value}" if is_flag else argument

    return [underscored(argument) for argument in arguments]


def _name_first(arguments: list[str], flag: str | None) -> list[str]:
    """Returns the arguments with --flag= before the first that stands alone, if nobody gives it."""
    if flag is None or any(re.match(f"--?{flag}(=|$)", a) for a in arguments):
        return arguments
    is_value = False
    for i, argument in enumerate(arguments):
        if argument == "--":
            break
        if not is_value and not argument.startswith("-"):
            return [*arguments[:i], f"--{flag}={argument}", *arguments[i + 1 :]]
        name = argument.lstrip("-")
        is_value = not is_value and "=" not in argument and _takes_value(name)
    return arguments


def bundled() -> list[str]:
    """Returns the names of the configurations of this folder, sorted."""
    files = _BUNDLED.glob("[a-z]*.py")
    return sorted(file.stem for file in files if "\ndef get_config(" in file.read_text())


def _parse_config(argv: list[str], name: str) -> list[str]:
    """Parses the flags, after a check for mistakes that absl would report with a traceback."""
    if set(_HELP) & set(argv):
        return _parse(argv)
    files, others, problems = _sort_arguments(_underscored(argv[1:]), name)
    problems += [f"{file!r} is not used: --{name} is {files[0]}" for file in files[1:]]
    is_workdir = False
    for i, file in enumerate(files[:1]):
        path, colon, workdir = file.partition(":")
        if name == "config" and _NAME.fullmatch(path) and path in bundled():
            path = str(_BUNDLED / f"{path}.py")
            files[i] = f"{path}{colon}{workdir}"
        is_workdir = Path(path).name == "workdir.py"
        names_workdir = is_workdir or Path(path).name == "chat.py"
        if not Path(path).is_file():
            problems.append(f"--{name}={path} is no file{_available(name, path)}")
        elif names_workdir and not (Path(workdir) / CONFIG).is_file():
            problems.append(
                f"--config={file} must name the workdir of a run, which has a {CONFIG} (for "
                f"example --config={Path(path).stem}:runs/quickstart)"
            )
    _exit_if(problems)
    # config_flags looks for keys in sys.argv, behind the file.
    sys.argv[1:] = [*(f"--{name}={file}" for file in files), *others]
    try:
        program = _parse_flags(sys.argv)
        flags_left = unused(workdir, flags.FLAGS[name].value) if is_workdir else []
    except UserError as error:  # of a saved configuration
        _exit_if([str(error)])
        raise
    if flags_left:
        print(
            f"note: what {workdir}/{CONFIG} says of the machine it comes from is not used. To use "
            f"it, add: {' '.join(flags_left)}",
            file=sys.stderr,
        )
    return program


def _available(name: str, path: str) -> str:
    """Returns what could be meant by a path at which no file is."""
    if name == "sweep":
        files = ", ".join(sorted(file.as_posix() for file in Path(_SWEEPS).glob("[a-z]*.py")))
        return f" (available: {files})" if files else ""
    if Path(f"{path}.py").is_file():
        return f" (did you mean {path}.py?)"
    return f" (names of bundled ones: {', '.join(bundled())})"


def _sort_arguments(arguments: list[str], name: str) -> tuple[list[str], list[str], list[str]]:
    """Returns (configuration files, all other arguments as flags, mistakes)."""
    files, others, problems = [], [], []
    left = iter(arguments)
    for argument in left:
        flag, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-"):
            if name == "config" and equals and re.fullmatch(r"[\w.]+", flag):
                problems += unknown_keys([flag])
                others.append(f"--config.{argument}")
            else:
                files.append(argument)
            continue
        if not equals and _takes_value(flag):
            value = next(left, "")
            argument = f"--{flag}={value}"
        if flag == name:
            files.append(value)
            continue
        if name == "config" and flag.removeprefix("no").startswith("config."):
            problems += unknown_keys([flag.partition(".")[2]])
        elif name == "config" and flag not in flags.FLAGS and (keys := keys_like(flag)):
            forms = " or ".join(argument.replace(flag, f"config.{key}", 1) for key in keys)
            problems.append(f"--{flag} is no flag (did you mean {forms}?)")
        others.append(argument)
    return files, others, problems


def _takes_value(flag: str) -> bool:
    """Returns whether `--flag value` is possible: not for switches, be they flags or keys."""
    if flag in flags.FLAGS:
        return not flags.FLAGS[flag].boolean
    defaults = leaves(base.get_config())
    return any(not isinstance(defaults[key], bool) for key in keys_like(flag))


def _meaning(problem: str) -> str:
    """Returns a line of absl's about a flag; of one that is missing, what it is instead."""
    if missing := re.match(r"flag --(\w+)=None: .* must have a value other than None", problem):
        return f"--{missing[1]} is missing: {flags.FLAGS[missing[1]].help} See --help."
    return problem


def _exit_if(problems: list[str], status: int = 2) -> None:
    if problems:
        print("error: " + "\n       ".join(problems), file=sys.stderr)
        sys.exit(status)
