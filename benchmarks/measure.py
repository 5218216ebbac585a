"""What the benchmarks share: fair turns, one core, results as JSON lines and as a table."""

import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def use_one_core() -> None:
    """Keeps this process, and what it starts from now on, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def alternate(
    contenders: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, dict[str, float]]:
    """Calls every contender once a round, in turn, so that a busy moment hits them all alike.

    Returns:
      for each the median, lowest and highest of what its calls returned; the first round is a
      warm-up and does not count.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, run in contenders.items():
            value = run()
            if i:
                found[name].append(value)
    return {
        name: {"median": statistics.median(v), "lowest": min(v), "highest": max(v)}
        for name, v in found.items()
    }


def show(title: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Prints each result as a line of JSON, then all of them as a table."""
    for result in results:
        print(json.dumps({"benchmark": title, **result}))
    columns = list(dict.fromkeys(key for result in results for key in result))
    cells = [[_cell(result.get(key)) for key in columns] for result in results]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    print(f"\n{title}")
    for line in (columns, *cells):
        first, *rest = zip(line, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]).rstrip())
    print()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
