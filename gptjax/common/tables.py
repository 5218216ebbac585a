"""Tables as plain text."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as lines of fixed-width columns, the first left-aligned, the others right."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for i in range(len(rows[0])):
        table.add_column(justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(width=10_000, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
