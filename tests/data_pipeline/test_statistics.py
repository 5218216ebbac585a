"""Statistics are exact."""

import json
from collections import Counter

import numpy as np
import pytest

from data_pipeline import statistics


@pytest.mark.parametrize("n", [1, 2, 100, 1001])
def test_percentiles_are_lengths_of_the_nearest_rank(n):
    lengths = np.random.default_rng(n).geometric(0.01, n)
    shards = []
    for part in np.array_split(lengths, 2):
        tokens = int(part.sum()) + 1  # of text, so that a document of BOS alone divides by nothing
        shards.append({"val": {"documents": len(part), "tokens": tokens, "bytes": tokens}})
    found = statistics.split_statistics(shards, "val", Counter(lengths.tolist()))
    found = found["length_percentiles"]
    nearest = np.percentile(lengths, statistics.PERCENTILES, method="nearest").tolist()
    assert list(found.values()) == nearest
    ranks = [round(p / 100 * (n - 1)) for p in statistics.PERCENTILES]
    expected = {
        str(p): int(np.sort(lengths)[rank])
        for p, rank in zip(statistics.PERCENTILES, ranks, strict=True)
    }
    assert json.dumps(found) == json.dumps(expected)  # integers, in order
