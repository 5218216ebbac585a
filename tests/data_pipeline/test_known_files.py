"""Published files are identified by size, then by sha256; fakes stand in for the real 2 GB."""

import hashlib

import pytest
from test_prepare import make_config, make_rows, write_shard

from configs.errors import DataError
from data_pipeline import prepare, statistics
from data_pipeline.sources import known_files, parquet_footer
from data_pipeline.token_store import TokenStore


@pytest.fixture
def shard(tmp_path, monkeypatch):
    """A file that is the only known one."""
    path = write_shard(tmp_path / "000_00000.parquet", make_rows())
    data = path.read_bytes()
    known = known_files.KnownFile(
        dataset="someone/texts",
        revision="0123456789abcdef",
        path="data/a dump/000_00000.parquet",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        n_documents=260,
    )
    monkeypatch.setattr(known_files, "KNOWN_FILES", (known,))
    return path


NAME = "data/a dump/000_00000.parquet of someone/texts at revision 0123456789ab"


@pytest.mark.parametrize("name", ["000_00000.parquet", "renamed.parquet"])
def test_the_file_is_recognised_whatever_its_name(shard, caplog, name):
    path = shard.rename(shard.with_name(name))
    with caplog.at_level("INFO"):
        assert known_files.identify(path) == NAME
    assert [r.levelname for r in caplog.records] == ["INFO"]
    assert f"{path} is {NAME}" in caplog.text


def test_a_file_of_that_size_and_other_content_is_a_warning(shard, caplog):
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    assert known_files.identify(shard) is None
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert hashlib.sha256(data).hexdigest() in caplog.text and "Download it again" in caplog.text


def test_a_file_of_that_name_and_another_size_is_a_warning_with_both_sizes(shard, caplog):
    (known,) = known_files.KNOWN_FILES
    write_shard(shard, make_rows()[:-1])
    assert known_files.identify(shard) is None
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert f"is not {NAME}: it has {shard.stat().st_size:,} bytes" in caplog.text
    assert f"instead of {known.size_bytes:,}. A truncated download?" in caplog.text


def test_other_files_are_not_mentioned_and_not_read(shard, caplog, monkeypatch):
    path = shard.rename(shard.with_name("other.parquet"))
    path.write_bytes(path.read_bytes() + b"x")
    monkeypatch.setattr(hashlib, "file_digest", None)
    with caplog.at_level("INFO"):
        assert known_files.identify(path) is None
    assert not caplog.records


def test_a_truncated_download_names_the_published_size(shard):
    (known,) = known_files.KNOWN_FILES
    shard.write_bytes(shard.read_bytes()[:-100])
    message = rf"the file is truncated.*someone/texts.* has {known.size_bytes:,} bytes"
    with pytest.raises(DataError, match=message):
        parquet_footer.inspect(shard)


def test_preparation_hashes_once_and_its_summary_names_the_file(shard, tmp_path, monkeypatch):
    store = TokenStore.open(prepare.prepare(make_config(shard, tmp_path / "stores")))
    assert store.manifest["published"] == {"000_00000.parquet": NAME}
    assert f"is {NAME} (size and sha256)" in statistics.summary(store)
    monkeypatch.setattr(prepare, "identify", None)
    assert prepare.prepare(make_config(shard, tmp_path / "stores")) == store.path
    del store.manifest["published"]  # as in a store of an earlier version
    assert NAME not in statistics.summary(store)


def test_the_real_entry():
    assert known_files.FINEWEB in known_files.KNOWN_FILES
    assert str(known_files.FINEWEB) == (
        "data/CC-MAIN-2013-20/000_00000.parquet of HuggingFaceFW/fineweb at revision 9bb295ddab0e"
    )
    assert len(known_files.FINEWEB.sha256) == 64
