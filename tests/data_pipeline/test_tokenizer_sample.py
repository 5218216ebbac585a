"""The tokenizer's sample: bounded, spread out, the same each time."""

import numpy as np
from test_prepare import write_shard

from data_pipeline import encode, tokenizer_sample
from data_pipeline.sources.documents import Columns
from data_pipeline.sources.parquet import open_all


def open_file(path):
    return open_all({path.name: path}, Columns())[0]


def take_sample(shards, n_bytes, val_fraction=0.1):
    places = tokenizer_sample.plan_sample(shards, n_bytes, val_fraction=val_fraction)
    return [list(tokenizer_sample.texts(place)) for place in places]


def test_sample_is_bounded_spread_out_and_free_of_validation_text(tmp_path):
    rows = [{"id": f"{i}", "text": f"{i:04d} {'x' * 95}", "token_count": 1} for i in range(2000)]
    shard = open_file(write_shard(tmp_path / "a.parquet", rows, 50))
    places = take_sample([shard], 20_000)
    assert places == take_sample([shard], 20_000)
    texts = [text for place in places for text in place]
    assert sum(map(len, texts)) == 20_000
    numbers = np.array([int(text[:4]) for text in texts])
    assert len(set(numbers)) == len(numbers)
    assert (np.bincount(numbers // 50, minlength=40) == 5).all()  # from every row group alike
    assert not any(encode.is_val(str(i), 0.1) for i in numbers)
    everything = sum(map(len, take_sample([shard], 10**9)))
    assert everything == sum(not encode.is_val(str(i), 0.1) for i in range(2000))


def test_sample_takes_from_large_row_groups_what_small_ones_lack(tmp_path):
    texts = ["a" * 10] * 50 + ["é" * 2000, "b" * 4001] * 50
    rows = [{"id": f"{i}", "text": text, "token_count": 1} for i, text in enumerate(texts)]
    shards = [
        open_file(write_shard(tmp_path / f"{name}.parquet", part, 50, use_dictionary=False))
        for name, part in (("a", rows[:50]), ("b", rows[50:]))
    ]
    places = take_sample(shards, 90_001, 0.0)
    assert [len(place) for place in places] == [50, 23, 0] or len(places) == 3
    n_bytes = [sum(len(text.encode()) for text in place) for place in places]
    assert n_bytes[0] == 500 and 80_000 < sum(n_bytes) <= 90_001
    assert abs(n_bytes[1] - n_bytes[2]) < 10  # a character that does not fit is left out
