"""Statistics in bounded memory are exact."""

from collections import Counter

import numpy as np
import pytest

from data_pipeline import statistics


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_distinct_hashes_are_counted_in_bounded_memory(monkeypatch, at_once):
    monkeypatch.setattr(statistics, "DISTINCT_AT_ONCE", at_once)
    values = np.random.default_rng(0).integers(0, 60, 100).astype("<u8")
    chunks = np.split(values, [10, 10, 55])
    assert statistics.count_distinct(lambda: chunks, 100) == len(set(values.tolist()))


@pytest.mark.parametrize("n", [1, 2, 100, 1001])
def test_percentiles_are_those_of_numpy(n):
    lengths = np.random.default_rng(n).geometric(0.01, n)
    expected = np.percentile(lengths, statistics.PERCENTILES, method="nearest")
    percentiles = statistics._percentiles(Counter(lengths.tolist()))
    assert list(percentiles.values()) == expected.tolist()
