"""The part of --help about configuration keys: defaults, ranges or choices, and comments."""

import ast
import inspect
import textwrap
from collections.abc import Iterator

from configs import base
from configs.validate import CONSTRAINTS


def describe_keys() -> str:
    """Returns a paragraph for each group of keys of configs/base.py."""
    lines = ["Keys of the configuration, with the defaults of configs/base.py:"]
    group, indent = "", " " * 6
    for key, default, comment in documented_keys():
        if group != (group := key.rpartition(".")[0]):
            lines += ["", f"{group}:"]
        constraint = f"  ({CONSTRAINTS[key][0]})" if key in CONSTRAINTS else ""
        lines.append(f"  --config.{key}={default}{constraint}")
        lines += textwrap.wrap(comment, 100, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)


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
