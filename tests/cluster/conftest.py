"""Several processes of the real command on this machine."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Processes:
    """`python -m gptjax.main` on configs/debug.py, started several times; logs are in a folder."""

    def __init__(self, folder, cache_dir):
        self.folder, self.workdir, self._all = folder, folder / "run", []
        self.arguments = [
            *("configs/debug.py", f"workdir={self.workdir}", f"data.cache_dir={cache_dir}"),
            *("data.prepare_workers=1", "eval.eval_interval=2", "train.log_interval=1"),
            "log.tensorboard=True",
        ]

    def command(self, *arguments):
        return [sys.executable, "-m", "gptjax.main", *self.arguments, *arguments]

    def start(self, command, name, **variables):
        log = (self.folder / f"{name}.log").open("wb")
        with log:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | variables
            )
        self._all.append(process)
        return process

    def start_by_flags(self, n, *arguments):
        flags = (f"--coordinator=localhost:{self.free_port()}", f"--processes={n}", *arguments)
        return [self.start(self.command(*flags, f"--process={i}"), i) for i in range(n)]

    def free_port(self):
        """A free one of those that JAX chooses from."""
        while True:
            port = random.randrange(61440, 65536)
            with contextlib.suppress(OSError), socket.create_server(("", port)):
                return port

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def wait_for(self, text, name, count=1):
        while self.log(name).count(text) < count:
            assert any(process.poll() is None for process in self._all), self.log(name)
            time.sleep(0.02)

    def end(self):
        for process in self._all:
            process.kill()
            process.wait()


@pytest.fixture
def processes(tmp_path, debug_config):
    started = Processes(tmp_path, debug_config.data.cache_dir)
    yield started
    started.end()
