"""Hostile requests to a server: what becomes of each, counted.

    python -m benchmarks.attacks --workdir=runs/quickstart

By hand: JSON of wrong types, names, sizes and depths; HTTP with wrong hosts, lengths, encodings and
states; requests that are never complete. By mutation, with a seed: values of valid bodies
exchanged, removed and nested, and bytes of valid requests flipped, removed, doubled and cut. After
each, an ordinary request must be answered as before.

Outcomes: `refused` (4xx with a JSON error, or 400 as text where it was not HTTP), `right` (200, an
answer whose parts add up, and the same a second time), `closed` (a request that was never complete,
or nonsense, by the end of the server's time limit); and those that must not be: `error` (5xx, or a
traceback in the log), `abort` (the process ended), `hang`, `wrong`. Prints one line of JSON.
"""

import argparse
import collections
import contextlib
import copy
import json
import random
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.served import Served, raw_request, served

BAD = ("error", "abort", "hang", "wrong")
_LIMIT = 40.0  # seconds for any answer: the server's own limits are 20 and 30
_CANARY = {"prompt": "The Congress of", "max_tokens": 4, "temperature": 0, "seed": 1}


class Case(NamedTuple):
    """Bytes to send, and whether they may be accepted."""

    name: str
    data: bytes
    acceptable: bool = True
    patience: float = 10.0  # seconds without an answer until the client closes its side


def _deep(depth: int, inner: Any = 1) -> Any:
    for _ in range(depth):
        inner = [inner]
    return inner


VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.0, 0.5, -0.0, 1e308, -1e308, 2**31, 2**63, 2**64, -(2**64)),
    *(float("nan"), float("inf"), "", "a", "\ud800", "\0", "\u2581" * 50, "x" * 5000, "1", "\\"),
    *([], {}, [[]], [None], [1], [1, 2.0], [True], ["a", 1], [["a"]], [[1], []], {"a": 1}),
    *([-1], [2**40], [10**400], _deep(50), _deep(900), {"include_usage": 1}, {"\ud800": True}),
    *(["a"] * 5, ["a"] * 17, [""], [[1] * 5000], list(range(300))),
]
BASES: list[dict[str, Any]] = [
    {"prompt": "The ", "max_tokens": 5, "seed": 1},
    {"prompt": ["a", "b"], "n": 2, "max_tokens": 3, "logprobs": 2, "seed": 3, "stop": ["."]},
    {"prompt": [5, 6, 7], "max_tokens": 2, "echo": True, "logprobs": 1, "temperature": 0},
    {"prompt": "x", "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}},
    {"prompt": "x", "max_tokens": 0, "echo": True, "top_p": 0.5, "user": "me", "model": None},
]
NAMES = """model prompt max_tokens temperature top_p n logprobs seed stop echo stream stream_options
    user best_of frequency_penalty logit_bias presence_penalty suffix""".split()


def by_hand() -> Iterator[Case]:
    never: list[Any] = [_deep(900), {"a": {}}, "\ud800", 10**400, float("nan")]
    for name in NAMES:  # each parameter with values that it never has
        for value in never:
            acceptable = name in ("user", "model")
            yield Case(f"{name}: {value!r:.20}", raw_request({name: value}), acceptable)
    yield from bodies()
    yield from requests()


def bodies() -> Iterator[Case]:
    texts = {
        "deep list": b"[" * 500_000,
        "deep object": b'{"a":' * 100_000,
        "deep prompt": b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "5,000 digits": b'{"max_tokens":' + b"9" * 5_000 + b"}",
        "500,000 digits": b'{"seed":' + b"9" * 500_000 + b"}",
        "long exponent": b'{"temperature":1e' + b"9" * 4_000 + b"}",
        "long name": b'{"' + b"x" * 900_000 + b'":1}',
        "200,000 names": b"{" + b",".join(b'"%d":1' % i for i in range(70_000)) + b"}",
        "not UTF-8": b'{"prompt":"\xff\xfe"}',
        "UTF-16": '{"prompt":"a"}'.encode("utf-16"),
        "surrogate name": b'{"\\ud800": 1}',
        "surrogate bytes": b'{"\xed\xa0\x80": 1}',
        "NUL": b"\0" * 100,
        "empty": b"",
        "two values": b"{}{}",
        "a comment": b"{} // {}",
        "megabytes": b'{"prompt":"' + b"a" * 2_000_000 + b'"}',
    }
    for name, text in texts.items():
        yield Case(f"body: {name}", raw_request(text), False)
    long: dict[str, Any] = {
        "a million letters": "a" * 1_000_000,
        "a million spaces": " " * 1_000_000,
        "300,000 marks": "\u2581" * 150_000,
        "emoji": "\U0001f469\u200d" * 60_000,
        "300,000 ids": [1] * 300_000,
        "20,000 prompts": ["a"] * 20_000,
        "20,000 stops": ["a"] * 20_000,
    }
    for name, value in long.items():
        field = "stop" if "stops" in name else "prompt"
        yield Case(f"{field}: {name}", raw_request({field: value}), False)
    yield Case("the same name twice", raw_request(b'{"n":0,"n":1,"max_tokens":1,"seed":1}'))
    for more in (
        {"best_of": 2},
        {"suffix": "x"},
        {"frequency_penalty": 1},
        {"logit_bias": {"1": 1}},
    ):
        yield Case(f"not supported: {more}", raw_request(more), False)


def requests() -> Iterator[Case]:
    body = json.dumps({"max_tokens": 1, "seed": 1}).encode()
    for host in (
        "evil.example",
        "[::1",
        "127.0.0.1.evil",
        "127.0.0.1:x",
        "a@127.0.0.1",
        "",
        "\xb9",
    ):
        for path in ("/", "/health", "/v1/models", "/v1/completions", "/nothing"):
            text = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"
            yield Case(f"host {host!r} {path}", text.encode("latin-1"), False)
    lines = "Host: 127.0.0.1\r\nContent-Type: application/json\r\n"
    start = f"POST /v1/completions HTTP/1.1\r\n{lines}"
    heads = {
        "no host": "GET / HTTP/1.1\r\n\r\n",
        "two hosts": "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil\r\n\r\n",
        "HTTP/1.0 without a host": "GET / HTTP/1.0\r\n\r\n",
        "HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/9.9": f"GET / HTTP/9.9\r\n{lines}\r\n",
        "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "a long header": f"GET / HTTP/1.1\r\n{lines}X: {'x' * 200_000}\r\n\r\n",
        "5,000 headers": f"GET / HTTP/1.1\r\n{lines}" + "X: x\r\n" * 5_000 + "\r\n",
        "a long path": f"GET /{'x' * 100_000} HTTP/1.1\r\n{lines}\r\n",
        "lengths differ": f"{start}Content-Length: 1\r\nContent-Length: 2\r\n\r\n{{}}",
        "a negative length": f"{start}Content-Length: -1\r\n\r\n",
        "a long length": f"{start}Content-Length: {'9' * 30}\r\n\r\n{{}}",
        "length and chunks": f"{start}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0"
        "\r\n\r\n",
        "gzip": f"{start}Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
        "an unknown encoding": f"{start}Transfer-Encoding: gzip\r\n\r\n",
        "a bad chunk": f"{start}Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "a bad chunk later": f"{start}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n-5\r\n",
        "a bad chunk after an answer": start.replace("json", "xml")
        + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "traversal": f"GET /../../etc/passwd HTTP/1.1\r\n{lines}\r\n",
        "encoded traversal": f"GET /v1/models/%2e%2e%2f%2e%2e HTTP/1.1\r\n{lines}\r\n",
        "a surrogate in the path": f"GET /v1/models/%ed%a0%80 HTTP/1.1\r\n{lines}\r\n",
        "NUL in the path": f"GET /v1/models/%00 HTTP/1.1\r\n{lines}\r\n",
        "another server": f"GET http://evil.example/ HTTP/1.1\r\n{lines}\r\n",
        "CONNECT": f"CONNECT evil.example:443 HTTP/1.1\r\n{lines}\r\n",
        "upgrade": f"GET /v1/models HTTP/1.1\r\n{lines}Connection: upgrade\r\nUpgrade: h2c\r\n"
        "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n{}",
        "a form": f"POST /v1/completions HTTP/1.1\r\n{lines.replace('json', 'x')}\r\n",
    }
    methods = ("HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "X" * 5_000)
    heads |= {m[:9]: f"{m} /v1/completions HTTP/1.1\r\n{lines}\r\n" for m in methods}
    harmless = ("upgrade", "5,000 headers", "HTTP/9.9")
    for name, text in heads.items():
        yield Case(f"http: {name}", text.encode("latin-1"), name in harmless)
    for name, text in {
        "silence": "",
        "half of the headers": start,
        "half of a body": f"{start}Content-Length: 1000\r\n\r\n{{",
        "half of a chunk": f"{start}Transfer-Encoding: chunked\r\n\r\nff\r\n{{",
        "a body after the answer": f"{start.replace('json', 'xml')}Content-Length: 99\r\n\r\n{{",
    }.items():
        yield Case(f"never complete: {name}", text.encode(), False, patience=_LIMIT)
    yield Case("ten requests at once", raw_request(body) * 10)


def mutated_bodies(rng: random.Random, n: int) -> Iterator[Case]:
    for i in range(n):
        body = copy.deepcopy(rng.choice(BASES))
        for _ in range(rng.choice((1, 1, 2, 3))):
            name = rng.choice([*NAMES, *body])
            change = rng.randrange(4)
            if change == 0:
                body.pop(name, None)
            elif change == 1 and name in body:
                body[name] = rng.choice(([body[name]], {"a": body[name]}, [body[name]] * 3))
            elif change == 2:
                body[rng.choice(("Prompt", "prompt ", "", "n\0", "__class__", "\u0440"))] = 1
            else:
                body[name] = rng.choice(VALUES)
        yield Case(f"mutated body {i}: {body!r:.60}", raw_request(body))


def mutated_bytes(rng: random.Random, n: int) -> Iterator[Case]:
    for i in range(n):
        data = bytearray(raw_request(rng.choice(BASES)))
        for _ in range(rng.choice((1, 2, 4))):
            at = rng.randrange(len(data))
            end = min(len(data), at + rng.choice((1, 1, 4, 30)))
            change = rng.randrange(5)
            if change == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif change == 1:
                del data[at:end]
            elif change == 2:
                data[at:at] = data[at:end] * rng.choice((1, 2, 50))
            elif change == 3:
                data[at:at] = rng.choice((b"\r\n", b"\0", b":", b"\xff", b"\r\n\r\n", b'"', b"{"))
            else:
                del data[max(at, 1) :]
        yield Case(f"mutated bytes {i}", bytes(data), patience=0.5)


def exchange(port: int, case: Case) -> bytes | None:
    """Sends the bytes; returns what comes back until the server closes, or None: it does not."""
    received, patience = b"", case.patience
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_LIMIT) as s:
            with contextlib.suppress(ConnectionError):  # answered and closed before the end
                s.sendall(case.data)
            while True:
                s.settimeout(patience)
                try:
                    part = s.recv(1 << 16)
                except TimeoutError:
                    if patience == _LIMIT:
                        return None
                    s.shutdown(socket.SHUT_WR)
                    patience = _LIMIT
                    continue
                if not part:
                    return received
                received, patience = received + part, min(patience, 0.3)  # it may be kept alive
    except ConnectionError:
        return received


def judged(case: Case, answer: bytes | None) -> tuple[str, Any]:
    """Returns the outcome of a case by its answer, and the choices of a completion."""
    if not answer:
        return "hang" if answer is None else "closed", None
    head, _, text = answer.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):
        head, _, text = text.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status >= 500:
        return "error", None
    if status >= 400:
        if b"text/plain" in head:
            return "refused" if b"Invalid HTTP request received." in text else "wrong", None
        if case.data.startswith(b"HEAD"):
            return "refused", None
        message = _first(text)["error"]["message"]
        return "refused" if 0 < len(message) < 1000 else "wrong", None
    if status != 200 or not case.acceptable:
        return "wrong", None
    if b"event-stream" in head:
        return "right" if text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") else "wrong", None
    if b"text_completion" not in text:
        return "right", None  # another path
    body = _first(text)
    usage, choices = body["usage"], body["choices"]
    adds_up = usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    ended = all(choice["finish_reason"] in ("stop", "length") for choice in choices)
    in_order = [choice["index"] for choice in choices] == list(range(len(choices)))
    return "right" if adds_up and ended and in_order else "wrong", choices


def _first(text: bytes) -> Any:
    """Returns the first JSON value: other answers may follow."""
    return json.JSONDecoder().raw_decode(text.decode())[0]


def attack(server: Served, cases: list[Case]) -> dict[str, Any]:
    """Sends all cases one after the other, and an ordinary request after each."""
    expected = server.ask(_CANARY)[1]["choices"]
    start, outcomes = server.memory()["now"], collections.Counter[str]()
    bad, highest, slowest = [], ("", 0), ("", 0.0)
    for case in cases:
        begin, log = time.monotonic(), len(server.log())
        answer = exchange(server.port, case)
        outcome, choices = judged(case, answer)
        if choices and b'"seed": 1' in case.data:
            outcome, again = judged(case, exchange(server.port, case))
            outcome = outcome if again == choices else "wrong"
        if server.process.poll() is not None:
            outcome = "abort"
        elif "Traceback" in server.log()[log:]:
            outcome = "error"
        elif server.ask(_CANARY)[1]["choices"] != expected:
            outcome = "wrong"
        outcomes[outcome] += 1
        if outcome in BAD:
            bad.append({"case": case.name, "outcome": outcome, "answer": repr(answer)[:300]})
        if outcome == "abort":
            break
        highest = max(highest, (case.name, server.memory()["now"]), key=lambda x: x[1])
        slowest = max(slowest, (case.name, time.monotonic() - begin), key=lambda x: x[1])
    return {
        "cases": sum(outcomes.values()),
        "outcomes": dict(outcomes),
        "bad": bad,
        "memory_mb": {"start": start, **server.memory(), "after": highest},
        "slowest": (slowest[0], round(slowest[1], 1)),
        "stop_seconds": round(server.stop(), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutants", type=int, default=200, help="of each kind")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    cases = [*by_hand(), *mutated_bodies(rng, arguments.mutants)]
    cases += mutated_bytes(rng, arguments.mutants)
    with served(arguments.workdir) as server:
        print(json.dumps({"benchmark": "attacks", "kind": "requests", **attack(server, cases)}))


if __name__ == "__main__":
    main()
