"""Keeps the device busy: each result is read while the next computation runs."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def one_ahead(dispatched: Iterable[T]) -> Iterator[T]:
    """Yields each item of `dispatched` after taking the next one, which dispatches it."""
    pairs: Iterator[tuple[Any, Any]] = itertools.pairwise(itertools.chain(dispatched, [None]))
    return (item for item, _ in pairs)
