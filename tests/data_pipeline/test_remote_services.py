"""Downloads by the real clients: of a server shaped like the Hub, and of moto's S3."""

import hashlib
import http.server
import json
import re
import threading
import urllib.parse

import fsspec
import pytest

from configs.errors import DataError
from data_pipeline.sources import download, remote
from data_pipeline.sources.find import _data_files

DATA = b'{"text": "of the Hub"}\n' * 100
SHA256 = hashlib.sha256(DATA).hexdigest()
FILES = {"data/a.jsonl": DATA, "data/b.jsonl": b'{"text": "b"}\n', "README.md": b"x"}


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "BLOCK", 1000)
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.0)

    def call(source):
        named = remote.fetch(source, tmp_path, _data_files, download=True)
        return {name: path.read_bytes() for name, path in named.items()}

    return call


class Hub(http.server.BaseHTTPRequestHandler):
    """The data set some/texts, and what huggingface_hub asks about it."""

    protocol_version = "HTTP/1.1"
    lost = 0
    sha256 = SHA256

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if re.fullmatch(r"/api/datasets/some/texts(/revision/main)?", path):
            self.answer({"id": "some/texts", "sha": "0" * 40})
        elif found := re.fullmatch(r"/api/datasets/some/texts/tree/main/?(.*)", path):
            folder, every = found[1].strip("/"), "recursive=true" in self.path.lower()
            entries = [
                self.entry(name)
                for name in FILES
                if name.rpartition("/")[0] == folder or (every and name.startswith(folder))
            ]
            if not folder:
                entries.append({"type": "directory", "path": "data", "oid": "2" * 40, "size": 0})
            self.answer(*((entries,) if entries else ({}, 404)))
        elif found := re.fullmatch(r"/datasets/some/texts/resolve/main/(.*)", path):
            first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
            self.answer(FILES[found[1]][first : last + 1], 206)
        else:
            self.answer({}, 404)

    def entry(self, name):
        size = len(FILES[name])
        entry = {"type": "file", "path": name, "size": size, "oid": "1" * 40}
        if name == "data/a.jsonl":
            entry["lfs"] = {"oid": type(self).sha256, "size": size, "pointerSize": 130}
        return entry

    def answer(self, content, status=200):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status == 206 and type(self).lost:
            type(self).lost -= 1
            body = body[:10]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as another test wants it
    Hub.lost, Hub.sha256 = 0, SHA256
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": endpoint, "token": False})
        yield "hf://datasets/some/texts"
        server.shutdown()


def test_files_of_the_hub(hub, fetch):
    assert fetch(f"{hub}/data/a.jsonl") == {"a.jsonl": DATA}
    assert fetch(f"{hub}/data") == {"a.jsonl": DATA, "b.jsonl": FILES["data/b.jsonl"]}
    assert fetch(f"{hub}/data/[b]*.jsonl") == {"b.jsonl": FILES["data/b.jsonl"]}


def test_a_file_of_the_hub_has_the_published_hash(hub, fetch):
    Hub.sha256 = "0" * 64
    with pytest.raises(DataError, match=f"its sha256 is {SHA256}, and 0000.* is published"):
        fetch(f"{hub}/data/a.jsonl")


@pytest.mark.slow
def test_a_connection_to_the_hub_that_is_lost(hub, fetch):
    """Its client waits a second before each attempt of its own."""
    Hub.lost = 3
    assert fetch(f"{hub}/data/a.jsonl") == {"a.jsonl": DATA}


@pytest.mark.slow
def test_objects_of_s3(fetch, monkeypatch):
    pytest.importorskip("s3fs", reason="needs the extra remote")
    server = pytest.importorskip("moto.server", reason="needs moto").ThreadedMotoServer(port=0)
    server.start()
    try:
        options = {"endpoint_url": "http://{}:{}".format(*server.get_host_and_port())}
        monkeypatch.setitem(
            fsspec.config.conf, "s3", {"key": "x", "secret": "x", "client_kwargs": options}
        )
        fs = fsspec.filesystem("s3")
        fs.mkdir("objects")  # servers of one process share their buckets
        fs.pipe("objects/data/a.jsonl", DATA)
        fs.pipe("objects/data/b.jsonl", b'{"text": "b"}\n')
        assert fetch("s3://objects/data/a.jsonl") == {"a.jsonl": DATA}
        assert list(fetch("s3://objects/data")) == ["a.jsonl", "b.jsonl"]
        assert list(fetch("s3://objects/*/b*")) == ["data/b.jsonl"]
        (file,) = remote.list_files("s3://objects/data/a.jsonl", _data_files)
        assert file.digest == f"md5:{hashlib.md5(DATA).hexdigest()}" and file.version
        monkeypatch.setattr(remote, "_digest", lambda *_: "md5:0")
        with pytest.raises(DataError, match="and 0 is published"):
            fetch("s3://objects/data/[a].jsonl")
    finally:
        server.stop()
