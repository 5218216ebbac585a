"""Common parts of the benchmarks: alternation, one core, results as JSON lines and a table."""

import json
import os
import socket
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptjax.common.tables import plain_table


def free_port() -> int:
    """Returns a port of this machine that is free now."""
    with socket.create_server(("localhost", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def use_one_core() -> None:
    """Pins this process, and those it starts later, to one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def alternate(
    contenders: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, dict[str, float]]:
    """Calls each contender once per round, in turn, so that a busy moment affects all of them.

    Returns the median, lowest and highest value of each; the first round is a warm-up.
    """
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, run in contenders.items():
            value = run()
            if i:
                values[name].append(value)
    return {
        name: {"median": statistics.median(v), "lowest": min(v), "highest": max(v)}
        for name, v in values.items()
    }


def show(title: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Prints each result as a line of JSON, then all of them as a table."""
    for result in results:
        print(json.dumps({"benchmark": title, **result}))
    columns = list(dict.fromkeys(key for result in results for key in result))
    cells = [[_cell(result.get(key)) for key in columns] for result in results]
    print(f"\n{title}\n{plain_table([columns, *cells])}\n")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
