"""Batches are a function of the rows: not of hosts, prefetching, or where a run was stopped."""

import threading

import numpy as np
import pytest

from data_pipeline.packing import PackedRows
from data_pipeline.pipeline import BatchIterator


@pytest.fixture
def rows(store):
    return PackedRows(store.split("val"), block_size=16, seed=3, bos_id=1, segments=True)


def take(iterator, n):
    batches = [next(iterator) for _ in range(n)]
    iterator.close()
    return batches


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batch_s_holds_rows_in_order(rows):
    batches = take(BatchIterator(rows, batch_size=4, micro_steps=3), 5)
    flat = np.concatenate([batch["inputs"].reshape(-1, 16) for batch in batches])
    np.testing.assert_array_equal(flat, [rows[g].inputs for g in range(60)])


@pytest.mark.parametrize("n_hosts", [1, 2, 4])
@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_hosts_and_prefetching_change_nothing(rows, n_hosts, prefetch):
    whole = take(BatchIterator(rows, batch_size=4, micro_steps=3), 6)
    parts = [
        take(
            BatchIterator(
                rows,
                batch_size=4,
                micro_steps=3,
                host=host,
                n_hosts=n_hosts,
                prefetch=prefetch,
                place=lambda batch: batch,
            ),
            6,
        )
        for host in range(n_hosts)
    ]
    for s, batch in enumerate(whole):
        joined = {k: np.concatenate([part[s][k] for part in parts], axis=1) for k in batch}
        assert_equal(joined, batch)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_state_restores_exactly_at_every_batch(rows, prefetch):
    arguments = {"batch_size": 4, "micro_steps": 2, "prefetch": prefetch}
    iterator = BatchIterator(rows, **arguments)
    states, batches = [], []
    for _ in range(8):
        states.append(iterator.state)
        batches.append(next(iterator))
    iterator.close()
    for s, state in enumerate(states):
        assert state == {"next_row": 8 * s}
        for found, want in zip(
            take(BatchIterator(rows, state=state, **arguments), 8 - s), batches[s:], strict=True
        ):
            assert_equal(found, want)


def test_another_batch_size_goes_on_at_the_same_row(rows):
    iterator = BatchIterator(rows, batch_size=4, micro_steps=2)
    next(iterator)
    (batch,) = take(BatchIterator(rows, batch_size=6, micro_steps=1, state=iterator.state), 1)
    iterator.close()
    np.testing.assert_array_equal(batch["inputs"][0], [rows[g].inputs for g in range(8, 14)])


def test_epochs_follow_each_other_without_a_seam(rows):
    n = rows.rows_per_epoch
    iterator = BatchIterator(rows, batch_size=2, micro_steps=2, state={"next_row": n - 2})
    (batch,) = take(iterator, 1)
    flat = batch["inputs"].reshape(-1, 16)
    np.testing.assert_array_equal(flat, [rows[g].inputs for g in range(n - 2, n + 2)])


def test_close_ends_the_threads(rows):
    before = threading.active_count()
    take(BatchIterator(rows, batch_size=4, micro_steps=1, prefetch=2, place=lambda b: b), 3)
    assert threading.active_count() == before


def test_hosts_must_share_a_batch_evenly(rows):
    with pytest.raises(ValueError, match="multiple of the 3 hosts"):
        BatchIterator(rows, batch_size=4, micro_steps=1, n_hosts=3)
