"""Batches are a function of the rows: not of hosts, prefetching, or interruptions."""

import json
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.loader import BatchIterator
from data_pipeline.packing import PackedRows


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
        for batch, want in zip(
            take(BatchIterator(rows, state=state, **arguments), 8 - s), batches[s:], strict=True
        ):
            assert_equal(batch, want)


def on_hosts(rows, n_hosts, n_batches, **arguments):
    """Batches of all hosts side by side, and the state that each host would save."""
    iterators = [
        BatchIterator(rows, host=host, n_hosts=n_hosts, **arguments) for host in range(n_hosts)
    ]
    batches = []
    for _ in range(n_batches):
        parts = [next(iterator) for iterator in iterators]
        batches.append({k: np.concatenate([p[k] for p in parts], axis=1) for k in parts[0]})
    states = [iterator.state for iterator in iterators]
    for iterator in iterators:
        iterator.close()
    assert states == [states[0]] * n_hosts  # whichever host's state is saved
    return batches, states[0]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    host_counts=st.lists(st.sampled_from([1, 2, 4]), min_size=2, max_size=4),
    lengths=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    prefetches=st.lists(st.sampled_from([0, 1, 3]), min_size=4, max_size=4),
    micro_steps=st.integers(1, 3),
    first_row=st.integers(0, 100_000),
)
def test_a_run_resumes_exactly_on_other_host_counts(
    rows, host_counts, lengths, prefetches, micro_steps, first_row
):
    arguments = {"batch_size": 4, "micro_steps": micro_steps}
    state = {"next_row": first_row}
    whole, end = on_hosts(rows, 1, sum(lengths[: len(host_counts)]), state=state, **arguments)
    batches = []
    for n_hosts, n, prefetch in zip(host_counts, lengths, prefetches, strict=False):
        more, state = on_hosts(rows, n_hosts, n, state=state, prefetch=prefetch, **arguments)
        state = json.loads(json.dumps(state))  # as a checkpoint keeps it
        batches += more
    assert state == end
    for batch, want in zip(batches, whole, strict=True):
        assert_equal(batch, want)


class ManyDocuments:
    """A split of a million documents with as few bytes as possible."""

    n_docs = 1_000_000

    def __init__(self):
        self.doc_lengths = np.random.default_rng(0).integers(1, 1500, self.n_docs).astype(np.int32)
        self.n_tokens = int(self.doc_lengths.sum(dtype=np.int64))

    def read(self, doc, start, stop):
        return np.full(stop - start, 7, np.uint16)


@pytest.fixture(scope="module")
def many():
    return ManyDocuments()


def test_order_of_an_epoch_needs_12_bytes_a_document(many):
    tracemalloc.start()
    rows = PackedRows(many, block_size=1024, seed=1, bos_id=1, segments=False)
    for epoch in (5, 6, 7, 90):
        rows[epoch * rows.rows_per_epoch]
        size, _ = tracemalloc.get_traced_memory()
        assert size < (1 + (epoch in (6, 7))) * 12.01 * many.n_docs  # two where epochs meet
    tracemalloc.stop()


def test_restore_of_a_million_documents_is_quick(many):
    """40 ms on one slow core (benchmarks.restore); the bound leaves room for a busy machine."""

    def seconds(epoch):
        start = time.process_time()
        rows = PackedRows(many, block_size=1024, seed=1, bos_id=1, segments=False)
        state = {"next_row": epoch * rows.rows_per_epoch + rows.rows_per_epoch // 2}
        take(BatchIterator(rows, batch_size=4, micro_steps=1, state=state), 1)
        return time.process_time() - start

    assert min(seconds(epoch) for epoch in (0, 3, 10_000)) < 0.15


def test_another_batch_size_resumes_at_the_same_row(rows):
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
