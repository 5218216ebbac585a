"""Sources elsewhere: listed, downloaded, resumed, verified; on file systems that fail at will."""

import gzip
import hashlib
import http.server
import json
import logging
import re
import sys
import threading
import types

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from test_prepare import make_config, make_rows, write_shard

from configs.errors import DataError, UserError
from data_pipeline import prepare
from data_pipeline.locate import locate
from data_pipeline.sources import download, remote
from data_pipeline.sources.documents import NoSource
from data_pipeline.sources.find import _data_files

BLOCK = 100
DATA = bytes(range(256)) * 4


class Flaky(MemoryFileSystem):
    """Files in memory; each request is noted, and may fail."""

    protocol = "flaky"
    store: dict = {}
    pseudo_dirs = [""]
    asked: list = []
    faults: dict = {}  # number of a request -> what is called instead
    extra: dict = {}  # of info

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.asked.append((start, end))
        if fault := self.faults.get(len(self.asked)):
            return fault()
        return super().cat_file(path, start, end)

    def ls(self, path, detail=True, **kwargs):
        return [i | self.extra if detail else i for i in super().ls(path, detail, **kwargs)]

    def info(self, path, **kwargs):
        return super().info(path, **kwargs) | self.extra


fsspec.register_implementation("flaky", Flaky)


def lose():
    raise ConnectionResetError("lost")


@pytest.fixture(autouse=True)
def there(monkeypatch):
    monkeypatch.setattr(download, "BLOCK", BLOCK)
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.0)
    for name, empty in (("store", {}), ("asked", []), ("faults", {}), ("extra", {})):
        monkeypatch.setattr(Flaky, name, empty)
    fs = fsspec.filesystem("flaky")
    fs.pipe("/data/a.jsonl", DATA)
    return fs


@pytest.fixture
def fetch(tmp_path):
    def call(source="flaky://data/a.jsonl", **options):
        options = {"download": True} | options
        named = remote.fetch(source, tmp_path / "cache", _data_files, **options)
        return {name: path.read_bytes() for name, path in named.items()}

    return call


def parts(tmp_path):
    return list(tmp_path.rglob("*.part"))


def test_a_file_arrives_whole_with_its_hash_and_only_once(fetch, tmp_path, monkeypatch):
    assert fetch() == {"a.jsonl": DATA}
    assert Flaky.asked == [(i, min(i + BLOCK, 1024)) for i in range(0, 1024, BLOCK)]
    (state,) = tmp_path.rglob("a.jsonl.json")
    assert json.loads(state.read_text())["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert not parts(tmp_path)
    monkeypatch.setattr(remote, "list_files", None)  # no network from here on
    assert fetch() == fetch(download=False) == {"a.jsonl": DATA}


def test_folders_and_globs(fetch, there):
    for name in ("b.parquet", "README.txt", "c.jsonl", "notes.md", "below/d.jsonl"):
        there.pipe(f"/data/{name}", name.encode())
    assert list(fetch("flaky://data")) == ["a.jsonl", "b.parquet", "c.jsonl"]
    assert list(fetch("flaky://data/*.[jt]*")) == ["README.txt", "a.jsonl", "c.jsonl"]
    found = fetch("flaky://data/**/*.jsonl")
    assert list(found) == ["a.jsonl", "below/d.jsonl", "c.jsonl"]
    assert found["below/d.jsonl"] == b"below/d.jsonl"
    assert fetch("flaky://data/notes.md") == {"notes.md": b"notes.md"}  # a file is itself


def test_a_lost_connection_is_made_again_from_where_it_was(fetch, caplog):
    Flaky.faults.update(dict.fromkeys((2, 3, 7), lose))
    Flaky.faults[8] = lambda: DATA[400:430]  # part of what was asked for
    assert fetch() == {"a.jsonl": DATA}
    starts = [start for start, _ in Flaky.asked]
    assert starts[:10] == [0, 100, 100, 100, 200, 300, 400, 400, 430, 530]
    assert caplog.text.count("the connection failed at byte") == 3


def test_a_download_that_stopped_continues_in_the_next_run(fetch, tmp_path):
    Flaky.faults.update(dict.fromkeys(range(5, 99), lose))
    with pytest.raises(DataError, match=r"stopped at byte 400 of 1,024 \(lost\).*run again"):
        fetch()
    assert len(Flaky.asked) == 4 + download.ATTEMPTS
    assert [path.read_bytes() for path in parts(tmp_path)] == [DATA[:400]]
    Flaky.faults.clear()
    Flaky.asked.clear()
    assert fetch() == {"a.jsonl": DATA} and Flaky.asked[0] == (400, 500)


def test_a_file_that_changed_between_two_attempts_begins_again(fetch, there, caplog):
    Flaky.faults.update(dict.fromkeys(range(5, 99), lose))
    with pytest.raises(DataError, match="stopped"):
        fetch()
    there.pipe("/data/a.jsonl", DATA[::-1])
    Flaky.faults.clear()
    Flaky.asked.clear()
    assert fetch() == {"a.jsonl": DATA[::-1]} and Flaky.asked[0] == (0, 100)
    assert "has changed since its download began" in caplog.text


def test_a_file_that_changes_while_it_is_downloaded(fetch, there, tmp_path):
    def change():
        there.pipe("/data/a.jsonl", DATA[::-1])
        return DATA[::-1][300:400]

    Flaky.faults[4] = change
    with pytest.raises(DataError, match="changed while it was downloaded: run again"):
        fetch()
    assert not parts(tmp_path)
    assert fetch() == {"a.jsonl": DATA[::-1]}


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_what_is_not_as_published_is_discarded(fetch, tmp_path, monkeypatch, algorithm):
    digest = hashlib.new(algorithm, DATA).hexdigest()
    monkeypatch.setattr(remote, "_digest", lambda *_: f"{algorithm}:{digest}")
    Flaky.faults[4] = lambda: DATA[:100]
    with pytest.raises(DataError, match=f"damaged: its {algorithm} is .*{digest} is published"):
        fetch()
    assert not parts(tmp_path)
    assert fetch() == {"a.jsonl": DATA}


def test_digests_that_are_published(there):
    md5 = hashlib.md5(b"x").hexdigest()
    base64 = "ndTkYSaMgDT1yFZOFVxnpg=="
    assert remote._digest(there, {"lfs": {"sha256": "ab"}}) == "sha256:ab"
    assert remote._digest(there, {"md5Hash": base64}) == f"md5:{md5}"
    assert remote._digest(there, {"Content-MD5": base64}) == f"md5:{md5}"
    assert remote._digest(there, {"ETag": f'"{md5}"'}) == ""  # not S3
    for etag, encryption, expected in (
        (md5, {}, f"md5:{md5}"),
        (md5, {"ServerSideEncryption": "AES256"}, f"md5:{md5}"),
        (md5, {"ServerSideEncryption": "aws:kms"}, ""),
        (f"{md5}-3", {}, ""),
    ):
        s3 = types.SimpleNamespace(protocol=("s3", "s3a"), call_s3=lambda *_, e=encryption, **__: e)
        assert remote._digest(s3, {"ETag": f'"{etag}"', "name": "bucket/key"}) == expected


def test_a_server_without_ranges(fetch):
    Flaky.faults[2] = lambda: DATA
    with pytest.raises(DataError, match="sends the whole file.*download it"):
        fetch()


def test_a_disk_without_room(fetch, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10))
    with pytest.raises(DataError, match="needs 1,024 bytes, and 10 are free.*data.cache_dir"):
        fetch()
    assert not Flaky.asked


def test_what_cannot_be_reached(fetch, monkeypatch):
    with pytest.raises(NoSource, match="flaky://none cannot be listed: there is nothing"):
        fetch("flaky://none")
    with pytest.raises(NoSource, match="not downloaded yet"):
        fetch(download=False)
    monkeypatch.setattr(Flaky, "ls", lambda *_, **__: lose())
    with pytest.raises(NoSource, match="cannot be listed: lost. Check the name, the network"):
        fetch()
    with pytest.raises(UserError, match="Protocol not known: nonsense"):
        fetch("nonsense://x")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"install the extra \(pip install 'gptjax\[remote\]'\)"):
        fetch()


def test_a_partial_file_that_is_damaged_is_not_continued(fetch, tmp_path):
    Flaky.faults.update(dict.fromkeys(range(5, 99), lose))
    with pytest.raises(DataError, match="stopped"):
        fetch()
    parts(tmp_path)[0].write_bytes(DATA * 2)  # longer than the file
    Flaky.faults.clear()
    assert fetch() == {"a.jsonl": DATA}


def test_the_store_is_that_of_the_same_file_here(there, tmp_path, store):
    shard = write_shard(tmp_path / "000_00000.parquet", make_rows(60))
    there.pipe("/data/x/000_00000.parquet", shard.read_bytes())
    config = make_config(shard, tmp_path / "stores")
    config.tokenizer.file = str(store.path / "tokenizer.model")
    here = prepare.prepare(config)
    config.data.source = "flaky://data/x/000_00000.parquet"
    with pytest.raises(NoSource, match="not downloaded yet"):
        locate(config, download=False)
    assert prepare.prepare(config) == here
    assert locate(config, download=False)[0] == here
    downloaded = list((tmp_path / "stores" / "downloads").rglob("*.parquet"))
    assert [path.read_bytes() for path in downloaded] == [shard.read_bytes()]


def test_progress_is_shown(fetch, caplog):
    with caplog.at_level(logging.INFO):
        fetch()
    assert re.search(r"downloading: 1,024 of 1,024 bytes, [\d.]+ MB/s, 0s left", caplog.text)


# --- HTTP ---


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    content, etag, drop = DATA, '"1"', 0

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        kind, data = type(self), self.content
        status, first, last = 200, 0, len(data) - 1
        if requested := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            status, first, last = 206, int(requested[1]), min(int(requested[2]), last)
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", self.etag)
        self.send_header("Content-Length", str(last - first + 1))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if with_body and first >= 300 and kind.drop:
            kind.drop -= 1
            self.wfile.write(data[first : first + 10])
            self.close_connection = True  # in the middle of the block
        elif with_body:
            self.wfile.write(data[first : last + 1])

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    pytest.importorskip("aiohttp", reason="needs the extra remote")
    Handler.content, Handler.etag, Handler.drop = DATA, '"1"', 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/a/text.jsonl?token=1"
        server.shutdown()


def test_a_web_server_that_drops_connections_and_changes_its_file(web, fetch, caplog):
    Handler.drop = 3
    assert fetch(web) == {"text.jsonl": DATA}
    assert caplog.text.count("the connection failed at byte 300") == 3
    other = web + "2"
    Handler.drop = 99
    with pytest.raises(DataError, match="stopped at byte 300"):
        fetch(other)
    Handler.content, Handler.etag, Handler.drop = gzip.compress(DATA) * 9, '"2"', 0
    assert fetch(other) == {"text.jsonl": Handler.content}
    assert "has changed since its download began" in caplog.text
    assert fetch(web) == {"text.jsonl": DATA}  # which is here
