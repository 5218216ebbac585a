"""An exported folder, uploaded by the real client to a server shaped like the Hub."""

import base64
import http.server
import json
import threading

import pytest

from configs.errors import UserError
from gptjax.compat import hub

TOKEN = "hf_of_a_test"


class Hub(http.server.BaseHTTPRequestHandler):
    """Keeps what is created and committed; knows one token."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.endpoint}/user/name"})
        elif self.path == "/api/models/user/name/preupload/main":
            self.answer(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for file in json.loads(body)["files"]
                    ]
                }
            )
        elif self.path == "/api/models/user/name/commit/main":
            self.server.commits.append([json.loads(line) for line in body.splitlines()])
            self.answer(
                {"commitUrl": f"{self.server.endpoint}/user/name/commit/0", "commitOid": "0" * 40}
            )
        else:  # what a client may ask for beside these, such as whether a card's YAML is valid
            self.answer({})

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra remote")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.endpoint = f"http://127.0.0.1:{server.server_port}"
        server.created, server.commits = [], []
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


FILES = {
    "README.md": b"---\nlibrary_name: transformers\n---\n# exported\n",
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 100,
}


@pytest.mark.slow
@pytest.mark.parametrize("private", [True, False])
def test_a_folder_is_one_commit_of_its_files(server, tmp_path, private):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    address = hub.push(tmp_path, "user/name", private=private)
    assert address == f"{server.endpoint}/user/name"
    (created,) = server.created
    assert (created["organization"], created["name"]) == ("user", "name")
    assert created["visibility"] == ("private" if private else "public")
    ((header, *files),) = server.commits
    assert header["value"]["summary"] == "Upload a model of gptjax"
    sent = {f["value"]["path"]: base64.b64decode(f["value"]["content"]) for f in files}
    assert sent == FILES


@pytest.mark.slow
def test_a_wrong_token_is_refused_with_what_to_do(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    (tmp_path / "config.json").touch()
    with pytest.raises(
        UserError, match=r"user/name: .*401.*hf auth login.*hf upload user/name "
    ) as e:
        hub.push(tmp_path, "user/name", private=True)
    assert "hf_of" not in str(e.value)  # the token
    assert server.created == server.commits == []
