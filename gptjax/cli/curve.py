"""A curve drawn in characters."""

import itertools
import math
from collections.abc import Sequence

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a Braille cell, by row
_BLANK = 0x2800


def draw(points: Sequence[tuple[int, float]], width: int, height: int) -> list[str]:
    """Returns `height` lines of at most `width` characters; none of fewer than two finite points.

    Each character holds 2 x 4 dots. The first line begins with the largest y, the last one with the
    smallest.
    """
    points = [(x, y) for x, y in points if math.isfinite(y)]
    if len(points) < 2:
        return []
    margin = max(len(_label(y)) for _, y in points)
    n_columns, n_rows = 2 * max(1, width - margin), 4 * height
    ys = _columns(points, n_columns)
    top, bottom = max(ys), min(ys)
    cells = [[0] * (n_columns // 2) for _ in range(height)]
    before = None
    for column, y in enumerate(ys):
        row = round((top - y) / (top - bottom) * (n_rows - 1)) if top > bottom else n_rows // 2
        # A vertical line joins it with the column before, so that a steep curve has no holes.
        start = row if before is None else before + (row > before) - (row < before)
        for dot in range(min(start, row), max(start, row) + 1):
            cells[dot // 4][column // 2] |= _DOTS[dot % 4][column % 2]
        before = row
    heads = {0: _label(top), height - 1: _label(bottom)}
    return [
        heads.get(i, "").rjust(margin) + "".join(chr(_BLANK + dots) for dots in row)
        for i, row in enumerate(cells)
    ]


def _label(y: float) -> str:
    return f"{y:.3f} "


def _columns(points: Sequence[tuple[int, float]], n_columns: int) -> list[float]:
    """Returns the y of each column: the mean of its points, or interpolated between others."""
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    found: dict[int, list[float]] = {}
    for x, y in points:
        found.setdefault((x - first) * (n_columns - 1) // max(1, last - first), []).append(y)
    means = sorted((column, math.fsum(ys) / len(ys)) for column, ys in found.items())
    ys = [means[0][1]]
    for (c0, y0), (c1, y1) in itertools.pairwise(means):
        ys += [y0 + (y1 - y0) * (c - c0) / (c1 - c0) for c in range(c0 + 1, c1 + 1)]
    return ys
