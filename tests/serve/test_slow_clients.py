"""Clients that send or read slowly, leave, or are too many: others are served, the server stops."""

import asyncio
import contextlib
import json
import logging
import socket
import time
import types

import pytest
from helpers import ask

from gptjax.serve import connection, engine
from gptjax.serve.completions import CompletionChunk

HEADERS = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
LONG = {"prompt": "The ", "n": 4, "logprobs": 5, "max_tokens": 120, "stream": True}
PARTS = {
    "nothing": b"",
    "half of the headers": HEADERS,
    "half of a body": HEADERS + b'Content-Length: 100\r\n\r\n{"prompt"',
    "half of a chunk": HEADERS + b"Transfer-Encoding: chunked\r\n\r\n40\r\n{",
    "an empty line": b"\r\n",
    "half of a second request": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /hea",
    "a body after the answer": HEADERS.replace(b"json", b"xml") + b"Content-Length: 100\r\n\r\n{",
}


def whole(body):
    data = json.dumps(body).encode()
    return HEADERS + b"Content-Length: %d\r\n\r\n" % len(data) + data


@contextlib.contextmanager
def client(port, data=b""):
    """A connection that has sent `data`, and has little room for what it does not read."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        s.settimeout(10)
        s.connect(("127.0.0.1", port))
        s.sendall(data)
        yield s


def received(s):
    """All that a connection gives until the server closes it."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := s.recv(1 << 16):
            data += part
    return data


def is_closed(s):
    s.setblocking(False)
    try:
        return s.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def answered(port):
    return ask(port, "POST", "/v1/completions", {"prompt": "The ", "max_tokens": 2})[0] == 200


@pytest.fixture(autouse=True)
def no_traceback(caplog):
    yield
    records = caplog.get_records("call")
    assert [r.getMessage() for r in records if r.exc_info or r.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("data", PARTS.values(), ids=PARTS)
def test_a_request_has_to_arrive_in_time(port, monkeypatch, data):
    monkeypatch.setattr(connection, "RECEIVE_SECONDS", 0.3)
    with client(port, data) as s:
        start = time.monotonic()
        received(s)
        assert time.monotonic() - start < 4


def test_bytes_that_trickle_do_not_extend_the_time(port, monkeypatch):
    monkeypatch.setattr(connection, "RECEIVE_SECONDS", 0.5)
    with client(port) as s, pytest.raises(OSError):
        for _ in range(30):
            s.sendall(b"X")
            time.sleep(0.1)


def test_who_does_not_read_keeps_nobody_waiting_and_is_dropped(port, monkeypatch):
    monkeypatch.setattr(connection, "SEND_SECONDS", 1.0)
    with client(port, whole(LONG)) as s, client(port, whole({**LONG, "stream": False})) as t:
        assert answered(port)
        time.sleep(1.5)
        assert b"[DONE]" not in received(s)
        assert b'"usage"' not in received(t)


def test_half_open_connections_keep_nobody_out(port, monkeypatch):
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 10)
    with contextlib.ExitStack() as stack:
        half_open = [stack.enter_context(client(port, HEADERS)) for _ in range(50)]
        assert answered(port)
        time.sleep(0.3)
        closed = sum(map(is_closed, half_open))
        assert closed >= 40


BAD_CHUNK = b"no length\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "more"),
    [
        (whole(LONG), b""),
        (whole({**LONG, "stream": False}), b""),
        (PARTS["half of a body"], b""),
        (HEADERS + CHUNKED + BAD_CHUNK, b""),
        (HEADERS + CHUNKED, BAD_CHUNK),
        (HEADERS.replace(b"json", b"xml") + CHUNKED + BAD_CHUNK, b""),
        (HEADERS.replace(b"json", b"xml") + CHUNKED, BAD_CHUNK),  # after the answer
        (b"\0\1\2\r\n\r\n", b"more"),
        (whole({"max_tokens": 1}) * 3, b""),
    ],
)
def test_clients_that_leave_or_talk_nonsense_cause_no_traceback(port, data, more):
    for wait in (0.0, 0.1):
        with client(port, data) as s, contextlib.suppress(ConnectionError):
            time.sleep(wait)
            s.sendall(more)
            time.sleep(wait)
    assert answered(port)


class Steps:
    """In place of `completions.complete`: steps without a model, counted."""

    def __init__(self, n, seconds=0.0):
        self.n, self.seconds, self.n_drawn = n, seconds, 0

    def __call__(self, *_):
        for i in range(self.n):
            time.sleep(self.seconds)
            self.n_drawn += 1
            yield [CompletionChunk(0, str(i), [], 1, None)]


@pytest.mark.parametrize("stream", [True, False])
def test_what_a_client_has_left_is_not_computed_to_its_end(port, monkeypatch, stream):
    monkeypatch.setattr(engine.completions, "complete", steps := Steps(200, 0.02))
    with client(port, whole({"stream": stream})):
        time.sleep(0.2)
    deadline = time.monotonic() + 2
    while ask(port, "GET", "/health")[1]["requests"]:
        assert time.monotonic() < deadline
    drawn = steps.n_drawn
    time.sleep(0.1)
    assert 0 < steps.n_drawn <= drawn + 1 < 100


def test_the_model_waits_for_no_reader(store, monkeypatch):
    """A reader that takes one step of an answer: others get theirs, and it gets the rest later."""
    block_size = 32
    monkeypatch.setattr(engine.completions, "complete", Steps(block_size + 1))
    sampler = types.SimpleNamespace(model_config=types.SimpleNamespace(block_size=block_size))

    async def read():
        requests = engine.Engine(sampler, store.tokenizer, "debug")
        slow = requests.run(None)
        first = await anext(slow)
        others = [[step async for step in requests.run(None)] for _ in range(3)]
        return [[first] + [step async for step in slow], *others]

    answers = asyncio.run(read())
    assert [len(answer) for answer in answers] == [block_size + 1] * 4


def test_the_server_stops_whatever_its_clients_do(listening, monkeypatch):
    monkeypatch.setattr(connection, "STOP_SECONDS", 1)
    with contextlib.ExitStack() as stack:
        with listening() as port:
            for data in (
                *PARTS.values(),
                whole(LONG),
                whole(LONG),
                whole({**LONG, "stream": False}),
            ):
                stack.enter_context(client(port, data))
            time.sleep(0.3)
            start = time.monotonic()
        assert time.monotonic() - start < 4
