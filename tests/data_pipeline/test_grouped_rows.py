"""Rows of several groups against a naive packer of each; what is in memory; sizes beyond 2**32."""

import itertools
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_packer import BOS, FakeSplit, naive_epoch

from data_pipeline import grouped_rows, token_store
from data_pipeline.grouped_rows import Group, cut, pack
from data_pipeline.loader import BatchIterator
from data_pipeline.packing import PackedRows, golden_step, permutation
from data_pipeline.split import Present, Split

PACKING = {"seed": 7, "bos_id": BOS, "segments": True}


def fake_groups(*lengths):
    """Groups of documents whose tokens are numbered through."""
    firsts = itertools.accumulate((sum(group) for group in lengths), initial=2)
    splits = [FakeSplit(group, first) for group, first in zip(lengths, firsts, strict=False)]
    return splits, [Group(s.n_tokens, lambda s=s: s) for s in splits]


def naive_order(n_groups, seed, epoch, stream=0):
    return permutation(n_groups, seed, 2**63 + stream * 2**32 + epoch).tolist()


LENGTHS = [[5, 1, 9, 30, 2], [2, 1, 1, 40], [100], [1], [3, 3, 2]]


@pytest.mark.parametrize("stream", [0, 3])
def test_rows_equal_the_naive_packer_of_each_group(stream):
    splits, groups = fake_groups(*LENGTHS)
    rows = pack(groups, block_size=8, stream=stream, **PACKING)
    first = stream * 2**16
    orders, g = [], 0
    for epoch in range(3):
        orders.append(naive_order(len(splits), 7, epoch, first))
        for k in orders[-1]:
            for expected in naive_epoch(splits[k], 8, 7, epoch, first + k):
                for array, want in zip(rows[g], expected, strict=True):
                    np.testing.assert_array_equal(array, want)
                assert rows.documents_of(g) is splits[k]
                ids = [splits[k].doc_id(span.document) for span in rows.spans(g)]
                assert rows.document_ids([g]) == list(dict.fromkeys(ids))
                g += 1
        assert g == (epoch + 1) * rows.rows_per_epoch
        assert rows.epochs(g) == {"": epoch + 1}
    assert len(set(map(tuple, orders))) > 1
    assert len(rows.document_ids(range(g))) == sum(map(len, LENGTHS))


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), min_size=1, max_size=5),
    block_size=st.integers(1, 40),
    epoch=st.integers(0, 3),
)
def test_each_token_is_an_input_once_and_a_target_once(lengths, block_size, epoch):
    splits, groups = fake_groups(*lengths)
    rows = pack(groups, block_size=block_size, **PACKING)
    numbers = range(epoch * rows.rows_per_epoch, (epoch + 1) * rows.rows_per_epoch)
    packed = [rows[g] for g in numbers]
    everything = sorted(int(t) for split in splits for doc in split.docs for t in doc)
    for name in ("inputs", "targets"):
        tokens = [t for row in packed for t in getattr(row, name)[row.loss_mask].tolist()]
        assert sorted(tokens) == everything


def test_one_group_is_packed_as_it_is():
    (split,), groups = fake_groups([5, 1, 9, 30, 2])
    assert isinstance(rows := pack(groups, block_size=8, **PACKING), PackedRows)
    expected = [row for epoch in (0, 1) for row in naive_epoch(split, 8, 7, epoch)]
    np.testing.assert_array_equal(
        [rows[g].inputs for g in range(len(expected))], [row[0] for row in expected]
    )


def test_batches_resume_at_any_row():
    _, groups = fake_groups(*LENGTHS)

    def batches(first, n):
        rows = pack(groups, block_size=8, **PACKING)
        iterator = BatchIterator(
            rows, batch_size=2, micro_steps=1, state={"next_row": first}, prefetch=2
        )
        inputs = [next(iterator)["inputs"].reshape(-1, 8) for _ in range(n)]
        iterator.close()
        return np.concatenate(inputs)

    whole = batches(0, 40)
    for first in (1, 11, 38, 63):
        np.testing.assert_array_equal(batches(first, 8), whole[first : first + 16])


class Counted(FakeSplit):
    alive = weakref.WeakSet()

    def __init__(self, lengths):
        super().__init__(lengths)
        self.alive.add(self)


def test_two_groups_are_in_memory_and_the_next_one_is_prepared_past_the_middle():
    opened = []

    def group(k):
        return Group(80, lambda: opened.append(k) or Counted([8] * 10))

    rows = pack([group(k) for k in range(6)], block_size=8, **PACKING)
    assert opened == []
    order = [k for epoch in range(3) for k in naive_order(6, 7, epoch)]
    for g in range(2 * rows.rows_per_epoch):
        rows[g]
        place, row = divmod(g, 10)
        expected = order[: place + 1 + (row >= 5)]
        until = time.monotonic() + 5
        while len(opened) < len(expected) and time.monotonic() < until:
            time.sleep(0.001)
        assert opened == expected
        assert len(Counted.alive) <= 2
    rows[0]  # an earlier row can be read again
    assert len(Counted.alive) <= 2


def test_a_group_that_cannot_be_opened_fails_where_it_is_read():
    def fail():
        raise OSError("gone")

    _, (good, _) = fake_groups([80], [80])
    order = naive_order(2, 7, 0)
    groups = [good if k == order[0] else Group(80, fail) for k in range(2)]
    rows = pack(groups, block_size=8, **PACKING)
    for g in range(10):
        rows[g]
    with pytest.raises(OSError, match="gone"):
        rows[10]


@settings(max_examples=200, deadline=None)
@given(counts=st.lists(st.integers(0, 25), min_size=1, max_size=40))
def test_groups_are_consecutive_shards_of_the_intended_size(counts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped_rows, "GROUP_DOCUMENTS", 50)
        groups = cut(counts)
    sizes = [sum(counts[i] for i in group) for group in groups]
    assert sum(sizes) == sum(counts) and all(sizes)
    assert len(groups) <= -(-sum(counts) // 50)
    assert max(sizes, default=0) < 50 + 25
    assert all(a.stop <= b.start for a, b in itertools.pairwise(groups))


class Huge:
    """Documents of 2 GiTokens each; a token names its document and its place in it."""

    n_docs = 5
    doc_lengths = np.full(n_docs, 2**31 - 1, np.int32)
    n_tokens = n_docs * (2**31 - 1)

    @staticmethod
    def token(doc, place):
        return (8 * place + doc) % 2**31

    def read(self, doc, start, stop):
        return self.token(doc, np.arange(start, stop))


def naive_row(row, key, block_size):
    """Tokens of a row of an epoch of `Huge`, in Python's unbounded integers."""
    n_rows = -(-Huge.n_tokens // block_size)
    (word,) = np.random.Philox(key=np.array([7, key + 1], np.uint64)).random_raw(1)
    first = (int(word) + row * golden_step(n_rows)) % n_rows * block_size
    order, length = permutation(Huge.n_docs, 7, key).tolist(), 2**31 - 1
    places = (divmod(i, length) for i in range(first, min(first + block_size, Huge.n_tokens)))
    return [Huge.token(order[n], place) for n, place in places]


def test_offsets_and_row_numbers_beyond_32_bits():
    groups = [Group(Huge.n_tokens, Huge)] * 300
    rows = pack(groups, block_size=500, **PACKING)
    of_a_group = -(-Huge.n_tokens // 500)
    assert rows.rows_per_epoch == 300 * of_a_group > 2**32
    for g in (0, 2**32 + 1, 3 * rows.rows_per_epoch - 1, 7 * rows.rows_per_epoch + 123_456_789):
        epoch, row = divmod(g, rows.rows_per_epoch)
        place, row = divmod(row, of_a_group)
        group = naive_order(300, 7, epoch)[place]
        expected = naive_row(row, group * 2**32 + 2 * epoch, 500)
        assert rows[g].inputs[: len(expected)].tolist() == expected


def test_a_split_finds_tokens_beyond_32_bits(tmp_path):
    lengths, shards = np.full(2, 2**31 - 1, "<i4"), range(4, 7)
    counts = {"documents": 2, "tokens": int(lengths.sum(dtype=int)), "bytes": 0}
    for i in shards:
        token_store.shard_file(tmp_path, i, "train", "lengths").write_bytes(lengths.tobytes())
        rows = np.array([10 * i, 10 * i + 1], "<u4")
        token_store.shard_file(tmp_path, i, "train", "rows").write_bytes(rows.tobytes())
    entries = {i: {"train": counts, "source": f"{i}.parquet"} for i in shards}
    split = Split(Present(tmp_path), "train", entries, np.dtype("<u2"))
    assert split.n_tokens == 6 * (2**31 - 1) > 2**33

    class Tokens:
        def __init__(self, shard):
            self.shard = shard

        def __getitem__(self, key):
            return self.shard, key.start, key.stop

    split._tokens = Tokens
    assert split.read(5, 2**31 - 9, 2**31 - 1) == (2, 2**32 - 10, 2**32 - 2)
    assert split.read(2, 0, 7) == (1, 0, 7)
    assert split.doc_id(5) == "6.parquet:61" and split.doc_id(0) == "4.parquet:40"
