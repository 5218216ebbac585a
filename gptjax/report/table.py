"""A table of text, laid out by the page's template or as Markdown."""

from typing import NamedTuple


class Table(NamedTuple):
    """Cells of text, unescaped; the first cell of a row is its heading."""

    head: list[str]
    rows: list[list[str]]
    caption: str = ""

    def markdown(self) -> str:
        """Returns the table in Markdown, below its caption."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return f"{self.caption}\n\n{table}" if self.caption else table
