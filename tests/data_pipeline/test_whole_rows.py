"""Rows of whole documents: against the documents themselves, and a naive best fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_packer import BOS, FakeSplit

from configs.errors import UserError
from data_pipeline.grouped_rows import Group, pack
from data_pipeline.packing import Span
from data_pipeline.whole_rows import WholeRows, best_fit


def counted(ids):
    """Those whose number is no multiple of three."""
    return (ids != BOS) & (ids % 3 > 0)


def whole_rows(lengths, block_size, seed=7, counted=counted):
    split = FakeSplit(lengths)
    rows = WholeRows(
        split, seed=seed, block_size=block_size, bos_id=BOS, segments=True, counted=counted
    )
    return split, rows


def naive_best_fit(spans, capacity):
    rows = []
    for span in spans:
        room = [capacity - sum(s.stop - s.start for s in row) for row in rows]
        fitting = [r for r in room if r >= span.stop - span.start]
        if fitting:
            places = [i for i, r in enumerate(room) if r == min(fitting)]
            rows[max(places)].append(span)  # any of them is as good
        else:
            rows.append([span])
    return rows


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=30), st.integers(12, 20))
def test_best_fit(lengths, capacity):
    spans = [Span(i, 0, n) for i, n in enumerate(lengths)]
    rows, naive = best_fit(spans, capacity), naive_best_fit(spans, capacity)

    def fill(rows):
        return sorted(sum(s.stop for s in row) for row in rows)

    assert fill(rows) == fill(naive)
    assert sorted(s.document for row in rows for s in row) == list(range(len(lengths)))


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 50), min_size=1, max_size=25),
    block_size=st.integers(2, 30),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 3),
)
def test_each_counted_token_is_a_target_once_after_its_own_document(
    lengths, block_size, seed, epoch
):
    split, rows = whole_rows(lengths, block_size, seed)
    n = rows.rows_per_epoch
    targets, places = [], {}
    for g in range(epoch * n, (epoch + 1) * n):
        row, spans = rows[g], rows.spans(g)
        assert sum(s.stop - s.start for s in spans) <= block_size + 1
        for s in spans:
            places.setdefault(s.document, []).append(s)
        np.testing.assert_array_equal(row.inputs[1:], row.targets[:-1])
        content = np.concatenate([split.docs[s.document][s.start : s.stop] for s in spans])
        whole = np.append(row.inputs, row.targets[-1])
        np.testing.assert_array_equal(whole[: content.size], content)
        assert (whole[content.size :] == BOS).all()
        owner = np.repeat(np.arange(1, len(spans) + 1), [s.stop - s.start for s in spans])
        expected = np.append(owner, np.zeros(block_size, int))[:block_size]
        np.testing.assert_array_equal(row.segment_ids, expected)
        for i in np.flatnonzero(row.loss_mask):
            assert owner[i] == owner[i + 1]  # a token is predicted from its own document
            targets.append(int(row.targets[i]))
    for document, spans in places.items():
        if lengths[document] <= block_size + 1:
            assert spans == [Span(document, 0, lengths[document])]
        assert all(s.stop - s.start > 1 for s in spans)
    every = np.concatenate(split.docs)
    assert sorted(targets) == sorted(every[counted(every)].tolist())


def test_a_part_of_which_nothing_counts_is_left_out():
    """The second part begins after the token that it shares with the first."""
    _, rows = whole_rows([30], 8, counted=lambda ids: np.arange(len(ids)) == 8)
    assert rows.rows_per_epoch == 1
    assert rows.spans(0) == [Span(0, 0, 9)]
    assert rows[0].loss_mask.tolist() == [False] * 7 + [True]


def test_epochs_have_orders_of_their_own_and_the_same_rows():
    _, rows = whole_rows(list(range(2, 30)), 12)
    n = rows.rows_per_epoch
    epochs = [[tuple(rows.spans(e * n + i)) for i in range(n)] for e in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    again = whole_rows(list(range(2, 30)), 12)[1]
    assert [tuple(again.spans(2 * n + i)) for i in range(n)] == epochs[2]
    assert whole_rows(list(range(2, 30)), 12, seed=8)[1].spans(0) != rows.spans(0)
    assert rows.epochs(n * 3) == {"": 3.0}


def test_rows_are_full_where_documents_are_short():
    lengths = np.random.default_rng(0).integers(5, 60, 500).tolist()
    _, rows = whole_rows(lengths, 128)
    assert sum(lengths) / (129 * rows.rows_per_epoch) > 0.97


def test_too_many_conversations_are_refused():
    groups = [Group(5, lambda: FakeSplit([5]))] * 2
    packing = {"seed": 0, "block_size": 4, "bos_id": BOS, "segments": False}
    with pytest.raises(UserError, match="packed at once"):
        pack(groups, counted=counted, **packing)
