"""Damaged checkpoints: only what was saved is restored, bit for bit."""

import copy
import hashlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import bits, flip_bit, forge, state_of

from configs.errors import UserError
from gptjax.checkpoint import Checkpoints, RunProgress, digests, storage, verify
from gptjax.inference import load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def saved(debug_config, store, initial, tmp_path_factory):
    """A workdir with the checkpoints 1, 2 and 3, for all tests: it is never changed."""
    workdir = tmp_path_factory.mktemp("saved")
    config = copy.deepcopy(debug_config)
    config.checkpoint.keep_latest = 3
    checkpoints = Checkpoints(workdir, config, store)
    for step in (1, 2, 3):
        progress = RunProgress({"next_row": 8 * step}, 256 * step, 0.1 * step, 5.0 / step)
        checkpoints.save(state_of(initial, step), progress, val_loss=5.0 / step)
    checkpoints.close()
    return workdir


@pytest.fixture
def restore(debug_config, store, steps):
    def restore(workdir):
        checkpoints = Checkpoints(workdir, debug_config, store)
        try:
            return checkpoints.restore(steps)
        finally:
            checkpoints.close()

    return restore


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path, at=None):
    flip_bit(path, path.stat().st_size // 2 if at is None else at, 0)


def test_a_digest_is_that_of_the_bytes_in_c_order():
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b": rng.normal(size=(4,)).astype(jnp.bfloat16),
        "c": np.int32(7),
        "d": np.asfortranarray(rng.normal(size=(3, 5))),
        "e": np.zeros((0, 3), np.float32),
    }
    arrays = {name: np.asarray(a) if name == "c" else a for name, a in arrays.items()}
    records = digests.records(arrays)
    for name, a in arrays.items():
        expected = hashlib.sha256(a.tobytes(order="C")).hexdigest()
        shape = list(a.shape)
        assert records[name] == {"dtype": str(a.dtype), "shape": shape, "sha256": expected}
    assert digests.damage(arrays, json.loads(json.dumps(records))) == []
    other = dict(arrays, a=arrays["a"].reshape(5, 3), b=arrays["b"].astype(np.float32))
    other["f"] = other.pop("c")
    other["d"] = arrays["d"] + 1e-12
    problems = digests.damage(other, records)
    for words in ("a: shape", "b: dtype float32", "c is missing", "f is unexpected", "d: sha256"):
        assert words in "\n".join(problems)
    assert "e" not in {line.partition(":")[0] for line in problems}


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16, np.complex64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_noticed_at_any_position(dtype, value):
    for at in (0, 300_000, 599_999):  # in each of three chunks
        array = np.zeros(600_000, dtype)
        assert digests.not_finite({"x": array}) == []
        array[at] = value
        assert digests.not_finite({"n": np.arange(3), "x": array.reshape(2, -1)}) == ["x"]


def test_the_newest_is_restored_bit_for_bit(restore, workdir, initial):
    state, progress = restore(workdir)
    assert bits(state) == bits(state_of(initial, 3))
    assert progress == RunProgress({"next_row": 24}, 768, 0.1 * 3, 5.0 / 3)
    assert verify(workdir) == {1: "", 2: "", 3: ""}


def drop_meta(folder):
    (folder / "meta" / "metadata").unlink()


def half_deleted(folder):
    for path in sorted(folder.rglob("*"))[::2]:
        if path.is_file():
            path.unlink()


def edit_meta(folder, **changes):
    path = folder / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES = {
    "a flipped bit of parameters": lambda f: flip(largest(f / "params")),
    "a flipped bit of the optimizer state": lambda f: flip(largest(f / "opt_state")),
    "a flipped bit of the dropout key": lambda f: flip(f / "rng" / "dropout_key" / "0", -1),
    "a truncated array": lambda f: os.truncate(largest(f / "params"), 10_000),
    "an empty array": lambda f: largest(f / "params").write_bytes(b""),
    "a missing array": lambda f: largest(f / "opt_state").unlink(),
    "a missing item": lambda f: shutil.rmtree(f / "rng"),
    "an empty folder": lambda f: [shutil.rmtree(p) for p in f.iterdir() if p.is_dir()],
    "half deleted": half_deleted,
    "no meta": drop_meta,
    "meta is no JSON": lambda f: (f / "meta" / "metadata").write_text('{"step": 3, "conf'),
    "meta is another JSON": lambda f: (f / "meta" / "metadata").write_text("[]"),
    "meta is binary": lambda f: (f / "meta" / "metadata").write_bytes(b"\xff\x00\x81"),
    "a digit of meta": lambda f: edit_meta(f, progress={"next_row": 25}),
    "a digest is not that": lambda f: edit_meta(f, sha256="0" * 64),
    "no digest": lambda f: (f / "meta" / "metadata").write_text('{"step": 3, "format": 1}'),
    "the name of another step": lambda f: (shutil.rmtree(f), shutil.copytree(f.parent / "1", f)),
    "Orbax's own index": lambda f: (f / "params" / "_METADATA").write_text("{}"),
    "a file in its place": lambda f: (shutil.rmtree(f), f.write_text("x")),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(
    case, restore, workdir, initial, caplog
):
    folder = workdir / "checkpoints" / "3"
    DAMAGES[case](folder)
    before = contents(folder) or folder.read_bytes()
    assert [step for step, problem in verify(workdir).items() if problem] == [3]
    with caplog.at_level(logging.INFO):
        state, progress = restore(workdir)
    assert bits(state) == bits(state_of(initial, 2)) and progress.data_state == {"next_row": 16}
    aside = workdir / "checkpoints" / "damaged" / "3"
    assert f"{folder} is DAMAGED: " in caplog.text and str(aside) in caplog.text
    assert (contents(aside) or aside.read_bytes()) == before  # as it was
    assert verify(workdir) == {1: "", 2: ""}
    state, _ = restore(workdir)  # and again, without another message
    assert int(state.step) == 2 and caplog.text.count("DAMAGED") == 1


def test_two_damaged_ones_and_a_second_of_the_same_step(
    restore, workdir, initial, debug_config, store
):
    flip(largest(workdir / "checkpoints" / "2"))
    flip(largest(workdir / "checkpoints" / "3"))
    assert bits(restore(workdir)[0]) == bits(state_of(initial, 1))
    checkpoints = Checkpoints(workdir, debug_config, store)
    checkpoints.save(state_of(initial, 2), RunProgress())  # the run reaches it again
    checkpoints.close()
    flip(largest(workdir / "checkpoints" / "2"))
    restore(workdir)
    names = {p.name for p in (workdir / "checkpoints" / "damaged").iterdir()}
    assert names == {"2", "2-2", "3"}


def test_items_in_the_former_layout_are_read_and_verified(restore, workdir, initial):
    """OCDBT, Orbax's default: many arrays in one file."""
    folder = workdir / "checkpoints" / "3"
    state = jax.tree.map(np.asarray, state_of(initial, 3))
    for name, tree in (("params", state.params), ("opt_state", state.opt_state)):
        shutil.rmtree(folder / name)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)) as checkpointer:
            checkpointer.save(folder / name, args=ocp.args.PyTreeSave(tree))
        assert (folder / name / "manifest.ocdbt").exists()
    assert verify(workdir) == {1: "", 2: "", 3: ""}
    assert bits(restore(workdir)[0]) == bits(state)
    flip(largest(folder / "params"))
    assert [step for step, problem in verify(workdir).items() if problem] == [3]
    assert int(restore(workdir)[0].step) == 2


def test_if_all_are_damaged_nothing_is_moved_and_all_reasons_are_listed(restore, workdir, steps):
    for step in "123":
        flip(largest(workdir / "checkpoints" / step / "params"))
    before = contents(workdir / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint of this run is good") as error:
        restore(workdir)
    assert all(f"checkpoints/{step}: " in str(error.value) for step in "123")
    assert contents(workdir / "checkpoints") == before
    with pytest.raises(UserError, match="all are damaged"):
        load.restore_params(workdir, steps.state_shapes.params)


def test_a_checkpoint_of_another_format_is_refused_not_set_aside(restore, workdir, monkeypatch):
    monkeypatch.setattr(storage, "FORMAT", 2)
    with pytest.raises(UserError, match="format 1 and this program reads 2"):
        restore(workdir)
    assert not (workdir / "checkpoints" / "damaged").exists()


@pytest.mark.parametrize("name", ["../../../secret", "/tmp", "..", ".", "", "a/b"])
def test_an_item_cannot_lead_out_of_the_folder(workdir, name):
    """A forged checkpoint can have correct digests."""
    forge(workdir / "checkpoints" / "3", lambda meta: meta["arrays"].update({name: {}}))
    assert verify(workdir)[3] == f"in its meta, {name!r} is not an item's name"


def corrupt(folder, rng):
    """Damages a checkpoint in a random way of disks and people; returns which."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    path = rng.choice(paths)
    data = bytearray(path.read_bytes())
    at = rng.randrange(max(len(data), 1))
    how = rng.choice("flip zero truncate grow swap unlink subset folder".split())
    if how == "flip" and data:
        data[at] ^= 1 << rng.randrange(8)
    elif how == "zero":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif how == "truncate":
        del data[at:]
    elif how == "grow":
        data += rng.randbytes(rng.randrange(1, 100))
    elif how == "swap":
        data = bytearray(rng.choice(paths).read_bytes())
    path.write_bytes(data)
    if how == "unlink":
        path.unlink()
    elif how == "subset":
        for other in paths:
            if rng.random() < 0.5:
                other.unlink()
    elif how == "folder":
        shutil.rmtree(rng.choice([p for p in folder.rglob("*") if p.is_dir()]))
    return how


def corruptions(saved, tmp_path, restore, initial, n, seed):
    """Damages the newest checkpoint `n` times; returns how often that was noticed, by way."""
    rng = random.Random(seed)
    expected = {step: bits(state_of(initial, step)) for step in (2, 3)}
    noticed, harmless = {}, {}
    for i in range(n):
        workdir = shutil.copytree(saved, tmp_path / f"{i}")
        how = corrupt(workdir / "checkpoints" / "3", rng)
        state, progress = restore(workdir)
        step = int(state.step)
        assert bits(state) == expected[step], (how, i)
        assert progress.tokens_seen == 256 * step, (how, i)
        counts = noticed if step == 2 else harmless
        counts[how] = counts.get(how, 0) + 1
        assert (workdir / "checkpoints" / "damaged" / "3").exists() == (step == 2)
        shutil.rmtree(workdir)
    return noticed, harmless


def test_random_damage_never_restores_what_was_not_saved(saved, tmp_path, restore, initial):
    noticed, harmless = corruptions(saved, tmp_path, restore, initial, n=40, seed=0)
    assert sum(noticed.values()) + sum(harmless.values()) == 40
    # The rest is in bytes that nothing reads.
    assert sum(noticed.values()) >= 30


@pytest.mark.slow
def test_much_random_damage(saved, tmp_path, restore, initial):
    noticed, harmless = corruptions(saved, tmp_path, restore, initial, n=2000, seed=1)
    print(f"noticed {noticed}, harmless {harmless}")
    assert sum(noticed.values()) >= 1800


def test_a_flipped_bit_anywhere_in_meta_is_noticed(saved, tmp_path):
    workdir = shutil.copytree(saved, tmp_path / "run")
    folder = workdir / "checkpoints" / "3"
    path = folder / "meta" / "metadata"
    good = path.read_bytes()
    step = max(1, len(good) // 300)
    for at in range(0, len(good), step):
        path.write_bytes(good)
        flip(path, at)
        with pytest.raises(storage.Damaged):
            storage.read_meta(folder)
    path.write_bytes(good)
    assert storage.read_meta(folder)["step"] == 3


def test_generate_takes_the_best_that_is_good_and_moves_nothing(workdir, steps, initial, caplog):
    shapes = steps.state_shapes.params
    params, step = load.restore_params(workdir, shapes)
    assert step == 3 and bits(params) == bits(state_of(initial, 3).params)
    flip(largest(workdir / "checkpoints" / "3" / "opt_state"))
    assert load.restore_params(workdir, shapes)[1] == 3  # it reads the parameters only
    flip(largest(workdir / "checkpoints" / "3" / "params"))
    before = contents(workdir)
    params, step = load.restore_params(workdir, shapes)
    assert step == 2 and bits(params) == bits(state_of(initial, 2).params)
    assert "checkpoints/3 is DAMAGED and not used" in caplog.text
    assert contents(workdir) == before


def test_verify_prints_each_and_exits_1_if_one_is_damaged(workdir, tmp_path):
    def run(folder):
        command = [sys.executable, "-m", "gptjax.checkpoint", "verify", f"--workdir={folder}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)

    good = run(workdir)
    assert good.returncode == 0, good.stderr
    assert [line.split() for line in good.stdout.splitlines()] == [[s, "good"] for s in "123"]
    flip(largest(workdir / "checkpoints" / "2" / "params"))
    bad = run(workdir)
    assert bad.returncode == 1 and "Traceback" not in bad.stderr
    lines = bad.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["good", "DAMAGED:", "good"]
    assert "params/" in lines[1] or "Error" in lines[1]
    none = run(tmp_path / "nowhere")
    assert none.returncode == 1 and "no finished checkpoint" in none.stderr
