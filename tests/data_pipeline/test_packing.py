"""Packed rows against a naive packer that really concatenates the documents."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_packer import BOS, FakeSplit, naive_epoch

from data_pipeline.packing import PackedRows, golden_step, permutation


def packed_rows(lengths, block_size, seed=7, stream=0):
    split = FakeSplit(lengths)
    packing = {"block_size": block_size, "bos_id": BOS, "segments": True}
    return split, PackedRows(split, seed=seed, stream=stream, **packing)


SHAPES = [
    ([5, 1, 9, 30, 2, 2, 1, 1, 40], 8),
    ([1], 4),  # a split smaller than a row
    ([3, 3, 2], 8),  # exactly one row
    ([100], 7),  # one document, many rows
    ([1] * 20, 6),
    ([8, 8, 8], 8),  # documents end where rows do
]


@pytest.mark.parametrize("stream", [0, 5])
@pytest.mark.parametrize(("lengths", "block_size"), SHAPES)
def test_rows_equal_the_naive_packer(lengths, block_size, stream):
    split, rows = packed_rows(lengths, block_size, stream=stream)
    for epoch in range(3):
        expected = naive_epoch(split, block_size, 7, epoch, stream)
        assert len(expected) == rows.rows_per_epoch
        for i, row in enumerate(expected):
            actual = rows[epoch * rows.rows_per_epoch + i]
            for name, array, want in zip(actual._fields, actual, row, strict=True):
                np.testing.assert_array_equal(array, want, err_msg=f"epoch {epoch} row {i} {name}")


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    block_size=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 5),
)
def test_each_token_is_an_input_once_and_a_target_once(lengths, block_size, seed, epoch):
    split, rows = packed_rows(lengths, block_size, seed)
    first = epoch * rows.rows_per_epoch
    inputs, targets = [], []
    for g in range(first, first + rows.rows_per_epoch):
        assert all(span.start < span.stop for span in rows.spans(g))
        row = rows[g]
        kept = row.loss_mask
        inputs += row.inputs[kept].tolist()
        targets += row.targets[kept].tolist()
        np.testing.assert_array_equal(row.inputs[1:], row.targets[:-1])
        np.testing.assert_array_equal(row.segment_ids > 0, kept)
        for i in np.flatnonzero(kept[1:]) + 1:  # a segment changes exactly where a document begins
            new = row.segment_ids[i] != row.segment_ids[i - 1]
            assert new == (row.inputs[i] == BOS)
            assert row.positions[i] == (0 if new else row.positions[i - 1] + 1)
    everything = sorted(int(t) for doc in split.docs for t in doc)
    assert sorted(inputs) == everything
    assert sorted(targets) == everything


def test_orders_differ_by_epoch_and_seed_and_are_reproducible():
    split, rows = packed_rows(list(range(1, 60)), 16)
    n = rows.rows_per_epoch

    def epoch(rows, number):
        return [rows[number * n + i].inputs.tolist() for i in range(n)]

    first, second = epoch(rows, 0), epoch(rows, 1)
    assert first != second
    assert epoch(rows, 0) == first  # an earlier epoch can be read again
    assert epoch(packed_rows(list(range(1, 60)), 16, seed=8)[1], 0) != first
    assert epoch(packed_rows(list(range(1, 60)), 16)[1], 1) == second


def _philox_4x64(counter, key):
    """Philox4x64-10 as published (Salmon et al. 2011, table 2), in plain integers."""
    mask = 2**64 - 1
    c, k = list(counter), list(key)
    for _ in range(10):
        low = [(0xD2E7470EE14C6C93 * c[0]) & mask, (0xCA5A826395121157 * c[2]) & mask]
        high = [(0xD2E7470EE14C6C93 * c[0]) >> 64, (0xCA5A826395121157 * c[2]) >> 64]
        c = [high[1] ^ c[1] ^ k[0], low[1], high[0] ^ c[3] ^ k[1], low[0]]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


@pytest.mark.parametrize("key", [(0, 0), (1337, 6), (2**64 - 1, 3)])
def test_permutation_is_that_of_philox(key):
    n = 1000
    words = [w for i in range(1, n // 4 + 1) for w in _philox_4x64((i, 0, 0, 0), key)]
    digits = [(word >> shift) % 2**16 for word in words for shift in (0, 16, 32, 48)]
    low, high = digits[:n], digits[n : 2 * n]
    expected = sorted(range(n), key=lambda i: (high[i], low[i]))
    assert permutation(n, *key).tolist() == expected


@pytest.mark.parametrize("n", [1, 2, 3, 300_000, 300_001])
def test_permutation_holds_every_number_once(n):
    order = permutation(n, 5, 6)
    assert order.dtype == np.uint32
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    if n > 3:  # neither ranks before and after nor neighbours are correlated
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 5 / n**0.5
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 5 / n**0.5
        assert (order != permutation(n, 5, 7)).mean() > 0.99


@settings(max_examples=300, deadline=None)
@given(n=st.integers(1, 2_000_000), batch=st.integers(2, 64))
def test_rows_of_a_batch_are_far_apart(n, batch):
    step = golden_step(n)
    assert np.gcd(step, n) == 1  # so all rows are visited
    if n >= 1000 * batch:
        rows = np.sort([i * step % n for i in range(batch)])
        gaps = np.diff(rows, append=rows[0] + n)
        assert gaps.min() > n / batch / 4
