"""The order of sources against exact fractions; rows of a mixture against a naive count."""

import itertools
import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_packer import BOS, FakeSplit
from test_loader import assert_equal, on_hosts

from data_pipeline.mixture import MixtureRows, Schedule, turns
from data_pipeline.packing import PackedRows


def check_prefixes(order, weights):
    """Each prefix of `order` has each share to within less than a row, in exact arithmetic."""
    n = sum(weight > 0 for weight in weights)
    bound = Fraction(2 * n - 3, 2 * n - 2) if n > 1 else 0
    counts = [0] * len(weights)
    for t, source in enumerate(order, 1):
        counts[source] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - Fraction(weight, sum(weights)) * t) <= bound < 1
    return counts


@pytest.mark.parametrize("n", [1, 2, 3])
def test_small_weights(n):
    for weights in filter(any, itertools.product(range(6), repeat=n)):
        assert check_prefixes(turns(weights).tolist(), weights) == list(weights)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 120), min_size=1, max_size=9).filter(any))
def test_random_weights(weights):
    assert check_prefixes(turns(weights).tolist(), weights) == weights


def test_uneven_weights_of_a_long_period():
    period = 2**17 + 1
    weights = [period - 1 - 33_333 - 7, 33_333, 7, 1]
    order = turns(weights)
    for i, weight in enumerate(weights):  # errors times the period, in 64 bits
        error = np.cumsum(order == i) * period - weight * np.arange(1, period + 1)
        assert abs(error).max() * 6 <= 5 * period
    assert np.bincount(order).tolist() == weights


@settings(max_examples=100, deadline=None)
@given(
    phases=st.lists(
        st.tuples(st.integers(1, 50), st.lists(st.integers(0, 9), min_size=3, max_size=3)),
        min_size=1,
        max_size=4,
    ).filter(lambda phases: all(any(weights) for _, weights in phases))
)
def test_phases_follow_each_other_and_every_row_of_a_source_is_read_once(phases):
    firsts = [0, *itertools.accumulate(length for length, _ in phases)]
    schedule = Schedule([(f, tuple(w)) for f, (_, w) in zip(firsts, phases, strict=False)])
    n_rows, seen = firsts[-1] + 40, Counter()
    located = [schedule.locate(g) for g in range(n_rows)]
    for g, (source, row) in enumerate(located):
        assert schedule.counts(g) == [seen[i] for i in range(3)]
        assert row == seen[source]
        seen[source] += 1
    for (_, weights), first, stop in zip(phases, firsts, [*firsts[1:-1], n_rows], strict=False):
        check_prefixes([source for source, _ in located[first:stop]], weights)


def test_rows_beyond_32_bits():
    schedule = Schedule([(0, (7, 3)), (10**12 + 10, (1, 0))])
    assert schedule.counts(10**12) == [7 * 10**11, 3 * 10**11]
    assert schedule.locate(10**12 + 10 + 5) == (0, 7 * 10**11 + 7 + 5)


LENGTHS = ([5, 1, 9, 30, 2] * 3, [2, 1, 1, 40, 7], [100])
WEIGHTS = (5, 2, 1)
PACKING = {"block_size": 8, "seed": 7, "bos_id": BOS, "segments": True}


def mixture():
    splits = [FakeSplit(lengths, 1000 * i + 2) for i, lengths in enumerate(LENGTHS)]
    rows = [PackedRows(split, stream=i, **PACKING) for i, split in enumerate(splits)]
    schedule = Schedule([(0, WEIGHTS), (40, (0, 1, 1)), (72, (1, 1, 1))])
    return splits, MixtureRows(["a", "b", "c"], rows, schedule)


def test_each_token_is_read_once_before_any_of_its_source_is_repeated():
    splits, rows = mixture()
    seen = Counter()
    passes = [0.0, 0.0, 0.0]
    for g in range(400):
        row = rows[g]
        source = next(i for i, split in enumerate(splits) if rows.documents_of(g) is split)
        assert np.isin(row.targets[row.targets != BOS] // 1000, source).all()
        seen.update((source, t) for t in row.targets[row.loss_mask].tolist() if t != BOS)
        times = [
            {seen[i, t] for doc in split.docs for t in doc.tolist() if t != BOS}
            for i, split in enumerate(splits)
        ]
        assert all(max(t) - min(t) <= 1 for t in times)
        passes = [min(t) for t in times]
        assert [int(n) for n in rows.epochs(g + 1).values()] == passes
    assert min(passes) > 1 and list(rows.epochs(1)) == ["a", "b", "c"]


def test_documents_are_named_by_source():
    _, rows = mixture()
    ids = rows.document_ids(range(400))
    expected = {
        f"{'abc'[i]}/{1000 * i + 2}:{d}" for i, n in enumerate(LENGTHS) for d in range(len(n))
    }
    assert set(ids) == expected and len(ids) == len(expected)
    assert rows.document_ids([0, 1, 0]) == rows.document_ids([0, 1])
    assert rows.document_ids([3]) == list(
        dict.fromkeys(f"a/2:{span.document}" for span in rows.spans(3))
    )


@settings(max_examples=20, deadline=None)
@given(
    host_counts=st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=4),
    lengths=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    prefetch=st.sampled_from([0, 2]),
)
def test_batches_of_an_interrupted_mixture_are_those_of_an_unbroken_one(
    host_counts, lengths, prefetch
):
    """On any number of hosts, through the steps at which weights change."""
    arguments = {"batch_size": 4, "micro_steps": 2, "prefetch": prefetch}
    n = sum(lengths[: len(host_counts)]) + 8
    whole, end = on_hosts(mixture()[1], 1, n, **arguments)
    state, batches = None, []
    for n_hosts, length in zip([*host_counts, 4], [*lengths[: len(host_counts)], 8], strict=True):
        more, state = on_hosts(mixture()[1], n_hosts, length, state=state, **arguments)
        state = json.loads(json.dumps(state))
        batches += more
    assert state == end
    for batch, want in zip(batches, whole, strict=True):
        assert_equal(batch, want)
