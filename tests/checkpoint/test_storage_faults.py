"""Failed saves: earlier checkpoints stay, the error is reported, and a later save succeeds."""

import copy
import logging
import resource
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest
from helpers import bits, state_of
from test_manager import contents

from configs.errors import UserError
from gptjax.checkpoint import Checkpoints, RunProgress, storage, verify
from gptjax.checkpoint.late_writes import silence_late_writes
from gptjax.common.workdir import WorkdirLock

ROOT = Path(__file__).parents[2]


def save(checkpoints, initial, step):
    checkpoints.finish(state_of(initial, step), RunProgress(tokens_seen=step))


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def visible(folder):
    """The files of checkpoints, without hidden ones: threads of a failed save may still write."""
    return {path: data for path, data in contents(folder).items() if path.parts[0][0] != "."}


def test_files_that_cannot_grow(checkpoints, initial, steps, tmp_path):
    """The kernel refuses writes past a size, at many sizes: in every file that is written."""
    folder = tmp_path / "run" / "checkpoints"
    before = visible(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failures = 0
    for size in (0, 1, 50, 100, 200, 400, 1000, 3000, 10_000, 40_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            save(checkpoints, initial, 2)
        except UserError as error:
            failures += 1
            assert "step 2 could not be saved" in str(error) and "GB free" in str(error)
            assert "\n" not in str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert visible(folder) == before
    assert failures == 10
    save(checkpoints, initial, 2)
    assert names(folder) == ["1", "2"] and verify(tmp_path / "run") == {1: "", 2: ""}
    assert bits(checkpoints.restore(steps)[0]) == bits(state_of(initial, 2))


def test_what_comes_late_from_a_failed_save_is_not_printed(caplog, monkeypatch):
    """And nothing else is lost: neither errors of other loops, nor other calls of a closed one."""
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: shown.append(unraisable.value))
    log = logging.getLogger("asyncio")
    monkeypatch.setattr(log, "filters", [])
    silence_late_writes.__wrapped__(".saving-")
    for value in (RuntimeError("Event loop is closed"), RuntimeError("x"), ValueError("y")):
        sys.unraisablehook(types.SimpleNamespace(exc_value=value, value=str(value)))
    assert shown == ["x", "y"]
    log.error("Future exception was never retrieved\nfuture: <... runs/.2.saving-14.tmp/a>")
    log.error("Future exception was never retrieved\nfuture: <... of a server>")
    assert [record.getMessage()[-12:] for record in caplog.records] == ["of a server>"]


def test_a_disk_without_room_is_noticed_before_anything_is_written(
    checkpoints, initial, tmp_path, monkeypatch
):
    folder = tmp_path / "run" / "checkpoints"
    n_bytes = sum(x.nbytes for x in jax.tree.leaves(initial)) - initial.step.nbytes
    usage = shutil.disk_usage(folder)
    disk = {"free": n_bytes - 1}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(**disk))
    with monkeypatch.context() as patch:
        patch.setattr(storage, "open_checkpointer", None)  # Orbax does not begin
        gb = f"{n_bytes / 1e9:.3g}"
        with pytest.raises(UserError, match=f"step 2 could not .*o space left .* {gb} GB needed"):
            save(checkpoints, initial, 2)
    assert names(folder) == ["1"]
    disk["free"] = n_bytes
    assert checkpoints.space_notice(initial).startswith(str(folder))
    save(checkpoints, initial, 2)
    assert names(folder) == ["1", "2"]
    disk["free"] = 3 * n_bytes  # keeps two latest, the best, and has two
    assert checkpoints.space_notice(initial) == ""


def test_a_removed_workdir_is_made_again(checkpoints, initial, steps, tmp_path, caplog):
    shutil.rmtree(tmp_path / "run")
    save(checkpoints, initial, 2)
    assert "was removed while it was locked" in caplog.text
    assert names(tmp_path / "run") == ["checkpoints", "lock"]
    assert bits(checkpoints.restore(steps)[0]) == bits(state_of(initial, 2))


def test_a_removed_workdir_that_another_run_has_taken_is_left_to_it(checkpoints, initial, tmp_path):
    shutil.rmtree(tmp_path / "run")
    other = WorkdirLock(tmp_path / "run")
    with pytest.raises(UserError, match="in use by another run"):
        save(checkpoints, initial, 2)
    assert names(tmp_path / "run") == ["lock"]
    other.release()
    save(checkpoints, initial, 3)
    assert names(tmp_path / "run" / "checkpoints") == ["3"]


def test_a_file_where_the_folder_was(checkpoints, initial, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.rename(tmp_path / "away")
    folder.write_text("mine")
    with pytest.raises(UserError, match="could not be saved"):
        save(checkpoints, initial, 2)
    assert folder.read_text() == "mine"
    folder.unlink()
    (tmp_path / "away").rename(folder)
    save(checkpoints, initial, 2)
    assert names(folder) == ["1", "2"]


class Killed(BaseException):
    """Ends a save at once, and all that would clean up after it, as SIGKILL does."""


class Death:
    """Raises Killed before call number `at` of the watched functions, and before all later ones."""

    def __init__(self, at):
        self.at, self.points, self.inside = at, [], 0

    def before(self, owner, name):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            if not self.inside:
                self.points.append(name)
                if len(self.points) > self.at:
                    raise Killed
            self.inside += 1
            try:
                return real(*args, **kwargs)
            finally:
                self.inside -= 1

        return call


def test_killed_before_any_step_of_a_save_the_old_or_the_new_checkpoint_is_whole(
    initial, steps, debug_config, store, tmp_path, monkeypatch
):
    """Each durable step after Orbax's, of a save that also removes an old checkpoint."""
    config = copy.deepcopy(debug_config)
    config.checkpoint.keep_latest, config.checkpoint.keep_best = 2, 0
    run = Checkpoints(tmp_path / "run", config, store)
    save(run, initial, 1)
    save(run, initial, 2)
    run.close()
    expected = {step: bits(state_of(initial, step)) for step in (2, 3)}
    died = []
    for die_at in range(100):
        workdir = Path(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
        run = Checkpoints(workdir, config, store)
        death = Death(die_at)
        with monkeypatch.context() as patch:
            for owner, name in (
                (storage, "_fsync_tree"),
                (storage, "fsync"),
                (Path, "rename"),
                (shutil, "rmtree"),
            ):
                patch.setattr(owner, name, death.before(owner, name))
            run.save(state_of(initial, 3), RunProgress())
            run.wait()
        run.close()
        again = Checkpoints(workdir, config, store)
        state, _ = again.restore(steps)
        again.finish(state_of(initial, 3), RunProgress())
        again.close()
        step = int(state.step)
        assert bits(state) == expected[step]
        assert not (workdir / "checkpoints" / "damaged").exists()
        assert names(workdir / "checkpoints") == ["2", "3"]
        shutil.rmtree(workdir)
        if len(death.points) <= die_at:
            break
        died.append((death.points[die_at], step))
    assert died[0] == ("_fsync_tree", 2) and died[-1] == ("rmtree", 3)
    assert {("rename", 2), ("fsync", 3), ("rename", 3)} <= set(died)  # and between


# Runs as root of a user namespace: a file system of 700 kB that fills up, then a read-only one.
IN_A_SMALL_DISK = """
import os, subprocess, sys
sys.path[:0] = [{root!r}, {tests!r}]
os.environ["JAX_PLATFORMS"] = "cpu"
import jax, pathlib
import helpers as t
from configs import debug
from data_pipeline.token_store import TokenStore
from gptjax.checkpoint import Checkpoints, RunProgress, manager, verify
from gptjax.train import trainer
from gptjax.model.config import GPTConfig
from gptjax.step.sharding import make_mesh
from configs.errors import UserError

disk = pathlib.Path({disk!r})
def mount(*options):
    subprocess.run(["mount", *options, str(disk)], check=True)

config, store = debug.get_config(), TokenStore.open({store!r})
model_config = GPTConfig.from_config(config, store.tokenizer.vocab_size)
steps = trainer.StepFunctions(config, model_config, store.tokenizer.token_bytes, make_mesh(1))
initial = steps.init_state()
mount("-t", "tmpfs", "-o", "size=3m", "none")
manager._LAST_DELAY = 0.0
run = Checkpoints(disk / "run", config, store)
def save(step):
    run.finish(t.state_of(initial, step), RunProgress())
def fails(step):
    try:
        save(step)
    except UserError as error:
        return str(error)
    raise AssertionError("saved")
save(1)
size = os.statvfs(disk)
full = disk / "full"
with full.open("wb") as file:  # leaves less room than a checkpoint needs
    free = size.f_bavail * size.f_frsize
    file.write(bytes(max(0, os.statvfs(disk).f_bavail * size.f_frsize - 200_000)))
message = fails(2)
assert "o space" in message or "RESOURCE_EXHAUSTED" in message, message
print(message)
assert verify(disk / "run") == {{1: ""}}
full.unlink()
save(2)
mount("--bind", str(disk))
mount("-o", "remount,bind,ro")
message = fails(3)
assert "ead-only" in message, message
print(message)
assert verify(disk / "run") == {{1: "", 2: ""}}
subprocess.run(["umount", str(disk)], check=True)
save(3)
assert verify(disk / "run") == {{2: "", 3: ""}}
assert t.bits(run.restore(steps)[0]) == t.bits(t.state_of(initial, 3))
run.close()
mount("-o", "remount,ro")
try:
    Checkpoints(disk / "run", config, store)
except UserError as error:
    assert "cannot be written" in str(error), error
    print("refused")
"""


def test_a_disk_that_is_full_and_one_that_is_read_only(store, tmp_path):
    namespace = ["unshare", "--mount", "--map-root-user"]
    try:
        probe = [*namespace, "mount", "-t", "tmpfs", "none", str(tmp_path)]
        allowed = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("needs unshare and the right to mount a file system of one's own")
    (tmp_path / "disk").mkdir()
    code = IN_A_SMALL_DISK.format(
        root=str(ROOT),
        tests=str(ROOT / "tests"),
        disk=str(tmp_path / "disk"),
        store=str(store.path),
    )
    command = [*namespace, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "refused"


def test_a_folder_that_cannot_be_created_is_refused_at_the_start(debug_config, store, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        Checkpoints(tmp_path / "file" / "run", debug_config, store)
