"""Latency of a server's good clients, beside the same with clients that stall and that leave.

    python -m benchmarks.serving_load --workdir=runs/quickstart --seconds=60

Good clients send a request, wait for its answer, and send the next. Stalling ones send half a
request, or a whole one whose stream they do not read, until they are dropped, and then again.
Leaving ones request a long stream and close the connection within a second. At the end of the
second period, with all clients still there, the server gets SIGTERM. Prints one line of JSON.
"""

import argparse
import asyncio
import contextlib
import json
import random
import select
import socket
import statistics
import time
from typing import Any

from benchmarks.served import Served, raw_request, served

_GOOD = {"prompt": "The Congress of", "max_tokens": 16, "temperature": 0.8}
_LONG = {"prompt": "The ", "max_tokens": 200, "n": 1, "logprobs": 5, "stream": True}


async def good(port: int, end: float, latencies: list[float], failures: list[str]) -> None:
    request = raw_request(_GOOD).replace(b"\r\nHost", b"\r\nConnection: close\r\nHost")
    while time.monotonic() < end:
        start = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            answer = await reader.read()
            writer.close()
        except OSError as error:
            failures.append(repr(error))
            continue
        if answer.startswith(b"HTTP/1.1 200") and b'"finish_reason"' in answer:
            latencies.append(time.monotonic() - start)
        else:
            failures.append(repr(answer[:200]))


async def stalling(port: int, end: float, half: bool, dropped: list[float]) -> None:
    loop, data = asyncio.get_running_loop(), raw_request(_LONG)
    while time.monotonic() < end:
        start = time.monotonic()
        with socket.socket() as s, contextlib.suppress(OSError):
            s.setblocking(False)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            await loop.sock_connect(s, ("127.0.0.1", port))
            await loop.sock_sendall(s, data[: len(data) - 20] if half else data)
            poll = select.poll()
            poll.register(s, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
            while time.monotonic() < end and not poll.poll(0):  # what arrives stays unread
                await asyncio.sleep(0.5)
            dropped.append(time.monotonic() - start)


async def leaving(port: int, end: float, rng: random.Random, left: list[float]) -> None:
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(raw_request(_LONG))
            await asyncio.sleep(rng.random())
            writer.close()
            left.append(0.0)


async def period(server: Served, seconds: float, n_good: int, n_bad: int) -> dict[str, Any]:
    """Runs all clients at once; with bad ones, stops the server while they run."""
    end, rng = time.monotonic() + seconds, random.Random(0)
    latencies, dropped, left = list[float](), list[float](), list[float]()
    failures = list[str]()
    end_bad = end + (30 if n_bad else 0)
    clients = [good(server.port, end, latencies, failures) for _ in range(n_good)]
    bad = [stalling(server.port, end_bad, i % 2 == 0, dropped) for i in range(n_bad)]
    bad += [leaving(server.port, end_bad, rng, left) for _ in range(n_bad)]
    tasks = [asyncio.create_task(client) for client in (*clients, *bad)]
    await asyncio.sleep(max(0.0, end - time.monotonic() - 0.5))
    memory, n_failures = server.memory(), len(failures)  # before the end
    result: dict[str, Any] = {"good": n_good, "stalling": n_bad, "leaving": n_bad}
    if n_bad:
        result["stop_seconds"] = round(await asyncio.to_thread(server.stop), 2)
        for task in tasks:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    latencies.sort()
    return result | {
        "answers": len(latencies),
        "failures": failures[:n_failures][:3] if n_failures else 0,
        "median_seconds": round(statistics.median(latencies), 3),
        "p99_seconds": round(latencies[int(0.99 * len(latencies))], 3),
        "dropped": len(dropped),
        "left": len(left),
        "memory_mb": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--good", type=int, default=100)
    parser.add_argument("--bad", type=int, default=20)
    arguments = parser.parse_args()
    with served(arguments.workdir) as server:
        start = {"start_seconds": round(server.start_seconds, 1), "memory_mb": server.memory()}
        results = [
            asyncio.run(period(server, arguments.seconds, arguments.good, n_bad))
            for n_bad in (0, arguments.bad)
        ]
        tracebacks = server.log().count("Traceback")
    print(
        json.dumps(
            {"benchmark": "serving_load", **start, "periods": results, "tracebacks": tracebacks}
        )
    )


if __name__ == "__main__":
    main()
