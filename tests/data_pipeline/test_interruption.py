"""Preparation, interrupted: killed at any step, out of disk or memory, two processes at once."""

import fcntl
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from test_prepare import contents, make_config, make_rows, write_shard

from configs.errors import DataError
from data_pipeline import encode, prepare, progress
from data_pipeline.token_store import TokenStore

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Every row group becomes a part."""
    monkeypatch.setattr(encode, "PART_BYTES", 1)


@pytest.fixture(scope="session")
def shard(tmp_path_factory):
    return write_shard(tmp_path_factory.mktemp("shard") / "000_00000.parquet", make_rows())


@pytest.fixture(scope="session")
def made(shard, tmp_path_factory):
    """A store made in one go, by one process: its folder."""
    return prepare.prepare(make_config(shard, tmp_path_factory.mktemp("stores")))


# Programs that kill preparation, again and again, in processes that they fork, so that the
# imports are done once. They run outside pytest, because JAX cannot be forked safely.
HARNESS = """
import os, pathlib, random, shutil, signal, sys, time, traceback
sys.path[:0] = [{root!r}, {tests!r}]
import test_prepare as t
from data_pipeline import encode, prepare
from data_pipeline.sources import parquet_footer
encode.PART_BYTES = {part_bytes}
shard, root = {shard!r}, pathlib.Path({folder!r})
parquet_footer.inspect(shard)  # 0.3 s, which those that are killed earlier would never get past
real_fsync = os.fsync

def start(folder, die_at=0, workers=1):
    pid = os.fork()
    if pid:
        return pid
    os.setsid()  # a process group of its own, with its workers
    steps = 0
    def fsync(fd):
        nonlocal steps
        steps += 1
        if steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        real_fsync(fd)
    os.fsync = fsync
    try:
        prepare.prepare(t.make_config(shard, folder, workers))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

def run(*arguments):
    return os.waitpid(start(*arguments), 0)[1]
"""

# Durable steps are those after an fsync: a process that is killed just before its n-th fsync, for
# every n, is killed between any two of them.
KILL_AT_EACH_STEP = """
deaths = failures = 0
while deaths < {most}:
    folder = root / str(deaths)
    status = run(folder, deaths + 1)
    if status == 0:
        break
    assert status == signal.SIGKILL, status
    deaths += 1
    if deaths > 1 and deaths % 3 == 0:
        run(folder, 4)  # and once more, on the way to recovery
    failures += run(folder) != 0
print(deaths, failures)
"""

# A rename that is not atomic: the new folder fills up file by file, as a copy would.
TORN_RENAME = """
real_rename = pathlib.Path.rename
def rename(self, target):
    if target.parent.name != "parts":
        return real_rename(self, target)
    target.mkdir()
    for file in sorted(self.iterdir()):
        shutil.copy(file, target)
        os.fsync(0)
pathlib.Path.rename = rename
real_fsync = lambda fd: None
"""

# Kills the whole group at random moments until the store exists, and starts over.
KILL_AT_RANDOM = """
random.seed({seed})
deaths = rounds = 0
seen = set()
while deaths < {least}:
    folder = root / str(rounds)
    rounds += 1
    while True:
        pid = start(folder, 0, {workers})
        time.sleep(random.uniform(0, {seconds}))
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if status == 0:  # it was done when the signal came
            break
        assert status == signal.SIGKILL, status
        deaths += 1
        names = [str(path) for path in folder.rglob("*")]
        kinds = ("tokenizer.model", "parts/00000-", "parts/.", "00000-train.rows")
        seen |= {{kind for kind in kinds if any(kind in name for name in names)}}
    assert status == 0, status
print(deaths, rounds, *sorted(seen))
"""


def harness(program, folder, shard, *, part_bytes=10_000, timeout=300, **values):
    """Runs one of the programs above; returns the words it prints."""
    values |= {"root": str(ROOT), "tests": str(Path(__file__).parent), "part_bytes": part_bytes}
    code = (HARNESS + program).format(folder=str(folder), shard=str(shard), **values)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_killed_at_any_step_it_resumes_and_ends_the_same(made, shard, tmp_path):
    deaths, failures = map(int, harness(KILL_AT_EACH_STEP, tmp_path, shard, most=1000))
    assert deaths > 20 and failures == 0
    expected = contents(made)
    for folder in tmp_path.iterdir():
        assert [p.name for p in folder.glob("[!.]*")] == [made.name]
        assert contents(folder / made.name) == expected, folder


def test_that_test_detects_a_rename_that_is_not_atomic(made, shard, tmp_path):
    words = harness(TORN_RENAME + KILL_AT_EACH_STEP, tmp_path, shard, most=25)
    deaths, failures = map(int, words)
    stores = [folder / made.name for folder in tmp_path.iterdir()]
    other = sum(contents(s) != contents(made) for s in stores if s.exists())
    assert deaths == 25 and failures + other >= 3


@pytest.mark.parametrize(
    ("workers", "least", "seconds"),
    [(1, 36, 0.25), pytest.param(2, 6, 2.0, marks=pytest.mark.slow)],
)
def test_killed_at_random_moments_it_ends_the_same(tmp_path, workers, least, seconds):
    shard = write_shard(tmp_path / "000_00000.parquet", make_rows(600), 10)
    unbroken = prepare.prepare(make_config(shard, tmp_path / "unbroken"))
    words = harness(
        KILL_AT_RANDOM,
        tmp_path / "killed",
        shard,
        part_bytes=1,
        seed=workers,
        workers=workers,
        least=least,
        seconds=seconds,
    )
    deaths, rounds = map(int, words[:2])
    assert deaths >= least and {"tokenizer.model", "parts/00000-"} <= set(words[2:])
    expected = contents(unbroken)
    for i in range(rounds):
        folder = tmp_path / "killed" / str(i)
        assert [p.name for p in folder.glob("[!.]*")] == [unbroken.name]
        assert contents(folder / unbroken.name) == expected


def start(config, *, part_bytes=1, limit=None, slow=0.0):
    """Starts prepare in a process of its own, as a user would: it can be killed."""
    code = f"""
        import logging, resource, sys, time
        sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
        logging.basicConfig(level="INFO")
        if {limit}:
            resource.setrlimit(resource.RLIMIT_FSIZE, ({limit},) * 2)
        import test_prepare as t
        from data_pipeline import encode, prepare, worker_pool
        from data_pipeline.sources import parquet
        encode.PART_BYTES = {part_bytes}
        inner = encode.encode_part
        def encode_part(part):
            time.sleep({slow})
            return inner(part)
        if {slow}:
            worker_pool.encode_part = encode_part
        config = t.make_config({config.data.source!r}, {config.data.cache_dir!r},
                               {config.data.prepare_workers})
        try:
            print(prepare.prepare(config))
        except parquet.DataError as e:
            sys.exit(f"DataError: {{e}}")
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


def children(pid):
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def test_kill_9_ends_the_workers_and_the_next_call_resumes(tmp_path, caplog, monkeypatch):
    shard = write_shard(tmp_path / "big.parquet", make_rows(6000), 30)
    config = make_config(shard, tmp_path / "stores", 2)
    process = start(config)
    folder = tmp_path / "stores"
    wait_until(lambda: len(list(folder.glob("*.partial/parts/00000-*"))) > 20)
    descendants = children(process.pid)
    process.send_signal(signal.SIGKILL)
    assert len(descendants) >= 2
    try:
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in descendants), 10.0)
    except AssertionError:
        for pid in descendants:
            os.kill(pid, signal.SIGKILL)
        pytest.fail("workers outlived their parent")
    process.communicate()
    finished = list(folder.glob("*.partial/parts/00000-*"))
    assert 20 < len(finished) < 200
    stamps = {path.name: path.stat().st_mtime_ns for path in finished}
    with caplog.at_level(logging.INFO):
        store = prepare.prepare(config)
    assert f"{len(stamps)} of 200 parts exist" in caplog.text
    monkeypatch.setattr(encode, "PART_BYTES", 10**9)
    unbroken = prepare.prepare(make_config(shard, tmp_path / "unbroken"))
    assert contents(store) == contents(unbroken)


def test_workers_do_not_import_the_main_program(shard, made, tmp_path):
    """Spawned processes import __main__: were that gptjax.main, each would import JAX."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
            import os, sys
            print("imported", os.getpid())
            sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
            if __name__ == "__main__":
                import test_prepare as t
                from data_pipeline import encode, prepare
                encode.PART_BYTES = 1
                prepare.prepare(t.make_config({str(shard)!r}, {str(tmp_path)!r}, 2))
        """)
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)
    assert done.stdout.count("imported") == 1
    assert contents(tmp_path / made.name) == contents(made)


def test_killed_worker_is_explained(shard, tmp_path, monkeypatch):
    config = make_config(shard, tmp_path, 2)
    updates = []

    def kill_a_worker(*_):
        if not updates:
            os.kill(children(os.getpid())[-1], signal.SIGKILL)
        updates.append(1)

    monkeypatch.setattr(progress.BatchProgress, "advance", kill_a_worker)
    try:
        prepare.prepare(config)
    except DataError as e:
        assert "ran out of memory" in str(e) and "prepare_workers" in str(e)
    # (The other worker may have been done with everything: then nothing was lost.)
    monkeypatch.undo()
    TokenStore.open(prepare.prepare(config)).verify()


@pytest.mark.parametrize("n_workers", [1, 2])
def test_full_disk_is_one_clear_error_and_can_be_resumed(tmp_path, n_workers):
    """A limit on the size of files stands in for the full disk: the same calls fail."""
    shard = write_shard(tmp_path / "a.parquet", make_rows(3000), 1000)
    config = make_config(shard, tmp_path / "stores", n_workers)
    process = start(config, limit=64_000)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "DataError: " in errors and "the disk is full" in errors and "cache_dir" in errors
    names = [p.name for p in (tmp_path / "stores").iterdir() if not p.name.startswith(".")]
    assert len(names) == 1 and names[0].endswith(".partial")
    assert not list((tmp_path / "stores").rglob("*.tmp"))
    store = prepare.prepare(config)
    assert contents(store) == contents(prepare.prepare(make_config(shard, tmp_path / "other")))


def test_full_disk_while_joining_removes_incomplete_files(shard, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encode, "_copy_kept", full)
    with pytest.raises(DataError, match="the disk is full.*finished parts are kept"):
        prepare.prepare(make_config(shard, tmp_path))
    left = {p.name for p in next(tmp_path.glob("*.partial")).iterdir()}
    assert left == {"parts", "tokenizer.model"}


def test_second_process_waits_and_uses_the_store_of_the_first(made, shard, tmp_path):
    config = make_config(shard, tmp_path)
    first = start(config, slow=0.15)
    wait_until(lambda: list(tmp_path.glob("*.partial/parts/00000-*")))
    second = start(config)
    out = [process.communicate(timeout=60) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], out
    assert out[0][0] == out[1][0] == f"{tmp_path / made.name}\n"
    assert f"Waiting for process {first.pid} on " in out[1][1]
    assert "training the tokenizer" not in out[1][1]
    assert contents(tmp_path / made.name) == contents(made)


def test_lock_of_a_dead_process_does_not_matter(made, shard, tmp_path):
    (tmp_path / f".{made.name}.lock").write_text("99999999\n")
    assert contents(prepare.prepare(make_config(shard, tmp_path))) == contents(made)


def test_waiting_names_the_process(made, shard, tmp_path, caplog):
    lock = tmp_path / f".{made.name}.lock"
    with lock.open("w") as f, caplog.at_level(logging.INFO):
        fcntl.flock(f, fcntl.LOCK_EX)
        f.write('{"pid": 4711, "host": "other", "since": "today"}')
        f.flush()
        thread = threading.Thread(target=prepare.prepare, args=(make_config(shard, tmp_path),))
        thread.start()
        wait_until(lambda: "Waiting for process 4711 on other, since today" in caplog.text)
        assert not (tmp_path / made.name).exists()
        fcntl.flock(f, fcntl.LOCK_UN)
        thread.join()
    assert contents(tmp_path / made.name) == contents(made)
