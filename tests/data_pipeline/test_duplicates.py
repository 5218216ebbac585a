"""Equal texts, against Python's sets, in any number of buckets."""

import numpy as np
import pytest

from data_pipeline import duplicates


def naive(hashes, val):
    """What is distinct, what is in val, and what repeats: val first, then in order."""
    seen, repeats = set(), np.zeros(len(hashes), bool)
    for i in sorted(range(len(hashes)), key=lambda i: (not val[i], i)):
        repeats[i] = hashes[i] in seen
        seen.add(hashes[i])
    return len(seen), sorted({h for h, v in zip(hashes, val, strict=True) if v}), repeats


@pytest.mark.parametrize("at_once", [1, 7, 1000])
@pytest.mark.parametrize("n", [0, 1, 2, 300])
@pytest.mark.parametrize("n_values", [1, 60, 1000])
def test_repeats_are_those_of_sets(tmp_path, monkeypatch, at_once, n, n_values):
    monkeypatch.setattr(duplicates, "AT_ONCE", at_once)
    monkeypatch.setattr(duplicates, "MAX_BUCKETS", 16)
    rng = np.random.default_rng(n)
    values = rng.integers(0, 2**64, n_values, np.uint64)
    values[: n_values // 30] = 2**64 - 1
    hashes = values[rng.integers(0, n_values, n)]
    val = rng.random(n) < 0.2
    cuts = [n // 9, n // 9, n // 2]
    parts = zip(np.split(hashes, cuts), np.split(val, cuts), strict=True)
    found = duplicates.find(parts, n + 5, tmp_path)
    distinct, in_val, repeats = naive(hashes.tolist(), val)
    assert found.n_distinct == distinct
    assert found.val_hashes.tolist() == in_val
    assert found.repeats.tolist() == repeats.tolist()
    asked = np.append(hashes, np.array([5, 2**63], "<u8"))
    expected = [h in in_val for h in asked.tolist()]
    assert duplicates.contains(found.val_hashes, asked).tolist() == expected
    assert not list(tmp_path.iterdir())


def test_memory_is_that_of_a_bucket(tmp_path, monkeypatch):
    """Half a million documents, a thousand at a time; most have one text."""
    monkeypatch.setattr(duplicates, "AT_ONCE", 1 << 12)
    largest = 0
    inner = np.lexsort

    def lexsort(keys):
        nonlocal largest
        largest = max(largest, len(keys[0]))
        return inner(keys)

    monkeypatch.setattr(duplicates.np, "lexsort", lexsort)
    rng = np.random.default_rng(0)

    def documents():
        for _ in range(500):
            hashes = rng.integers(0, 2**64, 1000, np.uint64)
            hashes[rng.random(1000) < 0.7] = 2**63 + 1
            yield hashes, np.zeros(1000, bool)

    found = duplicates.find(documents(), 500_000, tmp_path)
    assert found.n_distinct == 500_000 - found.repeats.sum()
    assert largest < 3 << 12
