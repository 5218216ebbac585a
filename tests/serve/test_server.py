"""The server's command line, and its HTTP on a socket of this process."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ask

from configs.errors import UserError
from gptjax.serve import __main__, engine

ROOT = Path(__file__).parents[2]
SECRET = "a-long-enough-secret"


def test_other_machines_need_a_flag_and_a_token(tmp_path):
    file = tmp_path / "token"
    file.write_text(SECRET + "\n")
    assert __main__._access("127.0.0.1", False, None) is None
    assert __main__._access("127.0.0.1", False, str(file)) == SECRET
    assert __main__._access("0.0.0.0", True, str(file)) == SECRET
    for public, token_file in ((False, None), (True, None), (False, str(file))):
        with pytest.raises(UserError, match="--public and --token_file"):
            __main__._access("0.0.0.0", public, token_file)
    file.write_text("short")
    with pytest.raises(UserError, match="16"):
        __main__._access("0.0.0.0", True, str(file))
    with pytest.raises(UserError, match="cannot be read"):
        __main__._access("localhost", False, str(tmp_path / "none"))


def test_a_port_in_use_is_explained():
    with __main__._listen("127.0.0.1", 0) as listener:
        with pytest.raises(UserError, match="--port="):
            __main__._listen("127.0.0.1", listener.getsockname()[1])


def test_a_missing_extra_is_named(tmp_path):
    """A folder whose fastapi cannot be imported precedes the installed packages."""
    (tmp_path / "fastapi.py").write_text("raise ImportError('no fastapi', name='fastapi')")
    result = subprocess.run(
        [sys.executable, "-m", "gptjax.serve", f"--workdir={tmp_path}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1
    assert "gptjax[serve]" in result.stderr and "Traceback" not in result.stderr


# --- the application, in this process, on a socket ---


def events_of(port, body):
    """Returns the data of each server-sent event of a streamed answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        assert response.status == 200
        assert response.getheader("Content-Type").startswith("text/event-stream")
        events = response.read().decode().split("\n\n")
        assert events.pop() == ""
    return [event.removeprefix("data: ") for event in events]


def test_errors_have_the_format_of_openai(port):
    completions = "/v1/completions"
    cases = [
        (400, ask(port, "POST", completions, {"max_tokens": 1000})),
        (400, ask(port, "POST", completions, b"{")),
        (400, ask(port, "POST", completions, b"[" * 100_000)),
        (400, ask(port, "POST", completions, b"\xff")),
        (400, ask(port, "POST", completions, b'{"\\ud800": 1}')),
        (404, ask(port, "POST", completions, {"model": "other"})),
        (413, ask(port, "POST", completions, b" " * 2_000_000)),
        (415, ask(port, "POST", completions, {"prompt": ""}, Content_Type="text/plain")),
        (400, ask(port, "POST", completions, {"\ud800": 1})),
        (400, ask(port, "POST", "/v1/chat/completions", {"messages": []})),
        (404, ask(port, "GET", "/v1/models/other")),
        (404, ask(port, "GET", "/v2/completions")),
        (405, ask(port, "GET", completions)),
    ]
    for expected, (status, body) in cases:
        assert status == expected, body
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["message"]
    assert ask(port, "POST", completions, {"prompt": "The ", "max_tokens": 2})[0] == 200


def test_requests_need_the_token(listening):
    with listening(token=SECRET) as port:
        assert ask(port, "GET", "/health")[0] == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": SECRET[:-1]}):
            assert ask(port, "GET", "/v1/models", **headers)[0] == 401
            assert ask(port, "POST", "/v1/completions", {"prompt": ""}, **headers)[0] == 401
        assert ask(port, "GET", "/v1/models", Authorization=f"Bearer {SECRET}")[0] == 200


HOSTS = ["evil.example", "127.0.0.1.evil.example", "127.0.0.1:1@evil.example", "[::1", "[", ""]
HOSTS += ["127.0.0.1:", "127.0.0.1:80:80", "evil.example/127.0.0.1", "\xb9"]


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/no/such/path"])
def test_only_requests_by_our_own_name_are_answered(port, path):
    for host in HOSTS:
        assert ask(port, "GET", path, Host=host)[0] == 403, host
    for host in ("127.0.0.1", "127.0.0.1:1234"):
        assert ask(port, "GET", "/v1/models", Host=host)[0] == 200


def test_clients_without_a_turn_are_sent_away(port, monkeypatch):
    monkeypatch.setattr(engine, "MAX_REQUESTS", 0)
    status, body = ask(port, "POST", "/v1/completions", {"prompt": "", "stream": True})
    assert (status, body["error"]["type"]) == (503, "server_error")


def test_a_stream_adds_up_to_the_whole_answer(port):
    request = {"prompt": ["The ", ""], "n": 2, "max_tokens": 40, "seed": 3, "logprobs": 2}
    whole = ask(port, "POST", "/v1/completions", request)[1]
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    body = {**request, "stream": True, "stream_options": {"include_usage": True}}
    *events, usage, done = events_of(port, body)
    assert done == "[DONE]" and len(events) > 4
    texts, tokens, reasons = [""] * 4, [[] for _ in range(4)], [None] * 4
    for event in map(json.loads, events):
        assert event["object"] == "text_completion" and event["usage"] is None
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
        tokens[choice["index"]] += choice["logprobs"]["tokens"]
        reasons[choice["index"]] = choice["finish_reason"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert tokens == [choice["logprobs"]["tokens"] for choice in whole["choices"]]
    assert reasons == [choice["finish_reason"] for choice in whole["choices"]]
    usage = json.loads(usage)
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert len(events_of(port, {**request, "stream": True})) == len(events) + 1  # no usage


def test_an_error_in_the_model_is_reported(port, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr(engine.completions, "complete", fail)
    status, body = ask(port, "POST", "/v1/completions", {})
    assert (status, body["error"]["type"]) == (500, "server_error")
    assert "out of memory" not in body["error"]["message"]
    (event,) = events_of(port, {"stream": True})
    assert json.loads(event)["error"]["type"] == "server_error"
    assert "out of memory" in caplog.text


def test_concurrent_requests_are_all_answered(port):
    """Each as if it were alone, also when other clients disconnect."""

    def text(seed):
        status, body = ask(
            port, "POST", "/v1/completions", {"prompt": "The ", "seed": seed, "max_tokens": 60}
        )
        assert status == 200, body
        return body["choices"][0]["text"]

    def leave(seed):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        body = {"prompt": "The ", "seed": seed, "max_tokens": 120, "stream": True}
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        connection.getresponse().read(10)
        connection.close()

    alone = [text(seed) for seed in range(8)]
    assert len(set(alone)) == 8
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        leaving = [pool.submit(leave, seed) for seed in range(6)]
        together = list(pool.map(text, range(8)))
        for future in leaving:
            future.result()
    assert together == alone
