"""The part of --help about configuration keys: defaults, ranges or choices, and comments."""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator, Sequence

from configs import base
from configs.validate import CONSTRAINTS


def list_keys() -> str:
    """Returns the keys of configs/base.py by group, with their defaults."""
    lines = [
        "Keys of the configuration, with their defaults. To set one: KEY=VALUE, such as",
        "optim.learning_rate=3e-4. --help GROUP, or KEY, or all explains them.",
    ]
    for group, keys in itertools.groupby(documented_keys(), lambda key: key[0].rpartition(".")[0]):
        words = [f"{key}={default}".replace(" ", "\0") for key, default, _ in keys]
        text = textwrap.fill(
            *("  ".join(words), 100),
            initial_indent="  ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += ["", f"{group or 'the run'}:", text.replace("\0", " ")]
    return "\n".join(lines)


def explain_keys(topics: Sequence[str]) -> str:
    """Returns a paragraph for each key that a topic is, has as its group, or is a part of.

    The topic `all` is every key.
    """
    lines, groups = [], {key.partition(".")[0] for key, *_ in documented_keys()}
    group, indent = "", " " * 6
    for key, default, comment in documented_keys():
        if not any(_is_about(topic, key, groups) for topic in topics):
            continue
        if group != (group := key.rpartition(".")[0]):
            lines += ["", f"{group}:"]
        constraint = f"  ({CONSTRAINTS[key][0]})" if key in CONSTRAINTS else ""
        lines.append(f"  {key}={default}{constraint}")
        lines += textwrap.wrap(comment, 100, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines).lstrip("\n") or f"No key is about {' or '.join(topics)}: see --help."


def _is_about(topic: str, key: str, groups: set[str]) -> bool:
    topic = topic.removeprefix("config.")
    if topic in groups:
        return key == topic or key.startswith(f"{topic}.")
    return topic == "all" or topic in key


def documented_keys() -> Iterator[tuple[str, str, str]]:
    """Yields (dotted key, default as configs/base.py writes it, comment on its line or "")."""
    source = inspect.getsource(base)
    lines = source.splitlines()
    (function,) = (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef))
    for statement in function.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Attribute):
            name, value = statement.targets[0].attr, statement.value
            keys = {name: value}
            if isinstance(value, ast.Call):  # config_dict.create(key=default, ...)
                keys = {f"{name}.{keyword.arg}": keyword.value for keyword in value.keywords}
            for key, node in keys.items():
                default = ast.get_source_segment(source, node) or ""
                if isinstance(node, ast.Call):  # config_dict.placeholder(type)
                    default = "None"
                yield key, default, lines[node.lineno - 1].partition("  # ")[2]
