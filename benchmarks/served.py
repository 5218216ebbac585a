"""A server as a process, for the benchmarks of serving: start, ask, memory, stop."""

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Served:
    """`python -m gptjax.serve` on a free port, whose log is a file."""

    def __init__(self, workdir: str):
        self._log = tempfile.NamedTemporaryFile(prefix="served-", suffix=".log")
        command = [sys.executable, "-m", "gptjax.serve", f"--workdir={workdir}", "--port=0"]
        start = time.monotonic()
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        while not (address := re.search(r"http://\S+:(\d+)/", self.log())):
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended:\n{self.log()}")
            time.sleep(0.05)
        self.port = int(address[1])
        self.start_seconds = time.monotonic() - start

    def log(self) -> str:
        """Returns what the server has written."""
        return Path(self._log.name).read_text(errors="replace")

    def memory(self) -> dict[str, int]:
        """Returns the resident memory in MB, now and at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        kib = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
        return {"now": int(kib["VmRSS"]) // 1000, "highest": int(kib["VmHWM"]) // 1000}

    def ask(self, body: Any, timeout: float = 60) -> tuple[int, Any]:
        """Returns the status and the JSON of a request to /v1/completions."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def stop(self) -> float:
        """Sends SIGTERM; returns the seconds until the process has ended."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        return time.monotonic() - start


@contextlib.contextmanager
def served(workdir: str) -> Iterator[Served]:
    server = Served(workdir)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def raw_request(body: Any, path: str = "/v1/completions") -> bytes:
    """Returns the bytes of an HTTP request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    ).encode() + data
