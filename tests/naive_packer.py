"""A packer that really concatenates the documents: the reference for `data_pipeline.packing`."""

import numpy as np

from data_pipeline.packing import golden_step, permutation

BOS = 1


class FakeSplit:
    """Documents in memory; every token but BOS is unique, so that each can be followed."""

    def __init__(self, lengths, first=2):
        self.first = first
        tokens = iter(range(first, 60_000))
        self.docs = [
            np.array([BOS, *(next(tokens) for _ in range(n - 1))], np.uint16) for n in lengths
        ]
        self.doc_lengths = np.array(lengths, np.int32)
        self.n_docs = len(lengths)
        self.n_tokens = int(sum(lengths))

    def read(self, doc, start, stop):
        assert 0 <= start <= stop <= len(self.docs[doc])
        return self.docs[doc][start:stop]

    def doc_id(self, doc):
        return f"{self.first}:{doc}"


def naive_epoch(split, block_size, seed, epoch, stream=0):
    """All rows of an epoch, by brute force: (inputs, targets, mask, segment_ids, positions)."""
    key = stream * 2**32 + 2 * epoch
    order = permutation(split.n_docs, seed, key)
    line = [int(t) for d in order for t in split.docs[d]]
    document = [i for i, d in enumerate(order) for _ in split.docs[d]]
    targets = [*line[1:], BOS]
    rows = []
    for start in range(0, len(line), block_size):
        n = min(block_size, len(line) - start)
        segment_ids, positions = [], []
        for i in range(start, start + n):
            new = i == start or document[i] != document[i - 1]
            segment_ids.append((segment_ids[-1] if segment_ids else 0) + new)
            positions.append(0 if new else positions[-1] + 1)
        empty = [0] * (block_size - n)
        padding = [BOS] * (block_size - n)
        rows.append(
            (
                line[start : start + n] + padding,
                targets[start : start + n] + padding,
                [True] * n + [False] * (block_size - n),
                segment_ids + empty,
                positions + empty,
            )
        )
    (word,) = np.random.Philox(key=np.array([seed, key + 1], np.uint64)).random_raw(1)
    step = golden_step(len(rows))
    return [rows[(int(word) + i * step) % len(rows)] for i in range(len(rows))]
