"""The stores of a mixture: one tokenizer for all, whatever interrupts or speeds up its training."""

import collections
import copy
import json
import shutil

import pyarrow.parquet as pq
import pytest

from configs.errors import DataError, UserError
from configs.mixture import declared
from data_pipeline import browse, encode, prepare, tokenizer_sample, worker_pool
from data_pipeline.encode import is_val
from data_pipeline.prepare import prepare_all, require
from data_pipeline.tokenizer import count_words, train_from_counts
from data_pipeline.tokenizer_sample import divide


@pytest.fixture
def config(mixture_config, tmp_path):
    mixture_config.data.cache_dir = str(tmp_path / "stores")
    mixture_config.tokenizer.sample_bytes = 30_000
    mixture_config.tokenizer.vocab_size = 400
    return mixture_config


def test_all_sources_have_the_tokenizer_of_a_sample_of_both(config, two_sources):
    stores = prepare_all(config)
    assert list(stores.sources) == ["prose", "ends"]
    counts = collections.Counter()
    for source, n_bytes in zip(two_sources, (18_000, 12_000), strict=True):
        table = pq.ParquetFile(source)
        n_groups = table.num_row_groups
        for i in range(n_groups):  # the share of each group, from its beginning
            left = n_bytes // n_groups
            for row in table.read_row_group(i).to_pylist():
                if left > 0 and not is_val(row["id"], config.data.val_fraction):
                    text = row["text"].encode()[:left]
                    left -= len(text)
                    counts += count_words([text.decode(errors="ignore")])
    naive = train_from_counts(counts, vocab_size=400, path=f"{config.data.cache_dir}/naive.model")
    assert [store.tokenizer.hash for store in stores.sources.values()] == [naive.hash] * 2
    assert stores.tokenizer.hash == naive.hash
    assert stores.identity["ends"]["hash"] == stores.sources["ends"].hash
    assert require is not prepare.prepare and prepare_all(config, require).hash == stores.hash
    config.data.mixture = tuple(reversed(config.data.mixture))  # another order of the rows
    assert prepare_all(config).hash != stores.hash


def test_any_number_of_workers_and_an_interruption_give_the_same(config, monkeypatch, tmp_path):
    expected = prepare_all(config)
    monkeypatch.setattr(encode, "PART_BYTES", 4_000)
    config.data.prepare_workers = 2
    config.data.cache_dir = str(tmp_path / "two")
    pools = []
    original = worker_pool.Pool.__init__

    def recorded(pool, workers, n_parts):
        original(pool, workers, n_parts)
        pools.append(pool._workers)

    monkeypatch.setattr(worker_pool.Pool, "__init__", recorded)
    train = tokenizer_sample.train

    def interrupted(*args):
        train(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer_sample, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_all(config)
    assert not list(tmp_path.glob("two/tokenizers/[!.]*.model"))
    monkeypatch.setattr(tokenizer_sample, "train", train)
    config.data.prepare_workers = 1
    assert prepare_all(config).hash == expected.hash
    assert pools[0] == 2 and pools[1] == 1


def test_a_tokenizer_can_be_given(config, store):
    config.tokenizer.file = str(store.path / "tokenizer.model")
    stores = prepare_all(config)
    assert stores.tokenizer.hash == store.tokenizer.hash
    assert not list(stores.sources["ends"].path.parent.glob("tokenizers"))


def test_a_source_that_changes_is_noticed(config, two_sources, monkeypatch, tmp_path):
    changing = tmp_path / "changing.parquet"
    shutil.copy(two_sources[1], changing)
    config.data.mixture = ((two_sources[0], 1), (str(changing), 1))
    train = tokenizer_sample.train

    def change(*args):
        train(*args)
        pq.write_table(pq.read_table(two_sources[1]).slice(9), changing)

    monkeypatch.setattr(tokenizer_sample, "train", change)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare_all(config)
    assert not list(tmp_path.glob("stores/tokenizers/[!.]*"))


def test_several_processes_need_it_prepared(config):
    with pytest.raises(DataError, match=r"tokenizers/\w+\.model: there is no tokenizer.*prepare"):
        prepare_all(config, require)


def test_two_sources_of_the_same_documents_are_refused(config, two_sources, tmp_path):
    again = tmp_path / "again.parquet"
    shutil.copy(two_sources[0], again)
    config.data.mixture = (*config.data.mixture, (str(again), 1))
    with pytest.raises(UserError, match="the sources prose and again have the same documents"):
        prepare_all(config)


@pytest.mark.parametrize(
    ("sizes", "weights", "expected"),
    [
        ([900, 900], [1, 2], [100, 200]),
        ([900, 50], [1, 2], [250, 50]),  # what the second lacks, the first gives
        ([30, 50], [1, 2], [30, 50]),
        ([1000, 10, 1000], [1, 1, 2], [97, 10, 193]),
    ],
)
def test_a_sample_is_divided_by_weight(sizes, weights, expected):
    assert list(map(min, sizes, divide(sizes, 300, weights))) == expected


def test_browse_shows_a_mixture(config, capsys):
    browse.main(config, start=3, rows=2)
    shown = capsys.readouterr().out
    assert "prose.parquet: 120 documents" in shown and "ends.parquet: 140 documents" in shown
    assert "Row 3, in optimizer step 0" in shown and "Row 4, in" in shown and "Row 5" not in shown
    browse.main(config, split="val", rows=1)
    shown = capsys.readouterr().out
    assert "epoch 0, prose" in shown and "epoch 0, ends" in shown
    with pytest.raises(UserError, match="a mixture has no epochs"):
        browse.main(config, epoch=1)


def test_the_command_prepares_all(config, capsys):
    prepare.main(copy.deepcopy(config))
    assert capsys.readouterr().out.count("store      ") == 2
    assert json.dumps(declared(config.data).weights) == "[3, 2]"


def test_several_machines_need_a_tokenizer_that_is_there(config):
    config.data.engine = "ray"
    with pytest.raises(UserError, match="needs a tokenizer that is there"):
        prepare_all(config)
