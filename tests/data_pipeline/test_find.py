"""What data.source names: a file, a folder, a glob."""

import re
from pathlib import Path

import pytest

from configs import base
from configs.errors import DataError
from data_pipeline.sources.find import NoSource, find_files

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make(tmp_path):
    def touch(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    return touch


def names(source):
    return list(find_files(source))


def test_a_file_is_itself_whatever_its_name(tmp_path, make):
    make("000_00000.parquet", "b.txt.gz", "no_suffix", "[1].jsonl")
    for name in ("000_00000.parquet", "b.txt.gz", "no_suffix", "[1].jsonl"):
        assert find_files(str(tmp_path / name)) == {name: tmp_path / name}


def test_a_folder_is_the_files_in_it_by_name(tmp_path, make):
    make("b.parquet", "000_00001.parquet", "10.parquet", "9.jsonl.zst", "9.json.gz", "x.ndjson")
    make(".hidden.parquet", "000_00000.parquet.part", "SOURCES.md", "below/c.parquet")
    (tmp_path / "folder.parquet").mkdir()
    found = find_files(tmp_path)
    assert list(found) == [
        *("000_00001.parquet", "10.parquet", "9.json.gz", "9.jsonl.zst", "b.parquet", "x.ndjson")
    ]
    assert found["10.parquet"] == tmp_path / "10.parquet"


def test_what_may_be_no_data_counts_where_there_is_nothing_else(tmp_path, make, caplog):
    make("README.txt", "info.json", "more.txt.gz")
    assert names(tmp_path) == ["README.txt", "info.json", "more.txt.gz"] and not caplog.text
    make("a.parquet")
    assert names(tmp_path) == ["a.parquet"]
    assert "README.txt, ... beside other files" in caplog.text
    glob = re.search("--config.data.source='(.*)'", caplog.text)[1]
    assert names(glob.replace("FOLDER", str(tmp_path))) == [
        "README.txt",
        "a.parquet",
        "info.json",
        "more.txt.gz",
    ]


def test_a_glob_names_files_below_its_fixed_part(tmp_path, make, monkeypatch):
    make("x/en/a.jsonl", "x/en/b.jsonl", "x/de/a.jsonl", "x/a.jsonl", "x/en/notes.md", "y/a.jsonl")
    assert names(f"{tmp_path}/x/*.jsonl") == ["a.jsonl"]
    assert names(f"{tmp_path}/x/**/*") == ["a.jsonl", "de/a.jsonl", "en/a.jsonl", "en/b.jsonl"]
    assert names(f"{tmp_path}/[xy]/a.json?") == ["x/a.jsonl", "y/a.jsonl"]
    monkeypatch.chdir(tmp_path)
    assert names("*/a.jsonl") == ["x/a.jsonl", "y/a.jsonl"]
    assert find_files("x/e?/b*")["en/b.jsonl"].read_bytes() == b""


@pytest.mark.parametrize("name", ["", "missing", "missing.parquet", "*.parquet", "notes.d"])
def test_nothing_there_says_how_to_download(tmp_path, make, name):
    make("notes.d/a.md", "b.md")
    source = tmp_path / name
    message = r"hf://datasets/HuggingFaceFW/fineweb/data/CC-MAIN-2013-20/000_00000.parquet"
    with pytest.raises(NoSource, match=f"{re.escape(str(source))}.*{message}.*000_00000.parquet"):
        find_files(source)


def test_the_default_is_the_folder_that_the_message_names():
    with pytest.raises(DataError) as e:
        find_files("missing")
    assert f"{base.get_config().data.source}/000_00000.parquet" in str(e.value)


def test_a_bundled_file_is_found_in_every_folder(tmp_path, monkeypatch):
    name = "data_pipeline/shard/quickstart.parquet"
    (here,) = find_files(name).values()
    monkeypatch.chdir(tmp_path)
    (elsewhere,) = find_files(name).values()
    assert elsewhere.samefile(ROOT / here)
    with pytest.raises(NoSource, match=r"no file or folder .*data_pipeline/shard/other\.parquet"):
        find_files("data_pipeline/shard/other.parquet")
    (tmp_path / "data_pipeline" / "shard").mkdir(parents=True)
    own = tmp_path / name
    own.write_bytes(b"")
    assert [file.resolve() for file in find_files(name).values()] == [own]  # what is here is first
