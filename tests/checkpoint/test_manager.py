"""Damaged checkpoints: only what was saved is restored, bit for bit."""

import copy
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


def mix(h):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = (h ^ (h >> shift)) * factor % 2**32
    return h ^ (h >> 16)


def naive_digest(array):
    """In Python's integers, element by element."""
    bits = array.reshape(-1).view(f"u{array.itemsize}").tolist()
    one = sum(mix(b ^ mix(i)) for i, b in enumerate(bits))
    other = sum(mix((b + mix(i ^ 0x9E3779B9)) % 2**32) for i, b in enumerate(bits))
    return f"{one % 2**32:08x}{other % 2**32:08x}"


def records(arrays):
    pending = digests.Digests({name: jnp.asarray(a) for name, a in arrays.items()})
    return pending.result(lambda text: [text])


def test_a_digest_is_the_sum_of_mixed_elements():
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(3, 5, 2)).astype(np.float32),
        "b": rng.normal(size=(4,)).astype(jnp.bfloat16),
        "c": np.array(7, np.int32),
        "d": rng.integers(0, 2**32, size=(3, 5), dtype=np.uint32),
        "e": np.array([True, False]),
        "f": np.array([-1.0, 0.0, -0.0], np.float16),
    }
    found, bad = records(arrays)
    assert bad == []
    for name, a in arrays.items():
        shape = list(a.shape)
        digest = naive_digest(a)
        assert found[name] == {"dtype": str(a.dtype), "shape": shape, "digest": digest}
    assert digests.damage(found, json.loads(json.dumps(found))) == []
    other = dict(arrays, a=arrays["a"].reshape(5, 3, 2), b=arrays["b"].astype(np.float32))
    other["g"] = other.pop("c")
    other["d"] = arrays["d"][::-1]
    other["f"] = -arrays["f"]
    problems = digests.damage(records(other)[0], found)
    for words in ("a: shape", "b: dtype float32", "c is missing", "g is unexpected", "d: digest"):
        assert words in "\n".join(problems)
    assert problems[-1].startswith("f: digest")  # 0.0 and -0.0 are other bits
    assert "e" not in {line.partition(":")[0] for line in problems}


def test_a_digest_notices_any_bit_and_any_exchange():
    array = np.zeros((4, 8), np.float32)
    seen = {records({"x": array})[0]["x"]["digest"]}
    flat = array.reshape(-1).view(np.uint32)
    for at in range(32):
        for bit in range(32):
            flat[at] = 1 << bit
            seen.add(naive_digest(array))
        flat[at] = 0
    assert len(seen) == 1 + 32 * 32  # none has the digest of another


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_noticed_at_any_position(dtype, value):
    array = np.zeros((6, 1000), dtype)
    assert records({"x": array})[1] == []
    for at in (0, 3000, 5999):
        bad = array.copy()
        bad.reshape(-1)[at] = value
        assert records({"n": np.arange(3), "x": bad})[1] == ["x"]


@pytest.mark.parametrize("dtype", ["float64", "complex64", "int64"])
def test_a_dtype_without_a_digest_is_in_no_checkpoint(workdir, dtype):
    def change(meta):
        meta["arrays"]["params"]["wte"]["dtype"] = dtype

    forge(workdir / "checkpoints" / "3", change)
    assert f"has the dtype {dtype}" in verify(workdir)[3]


def test_copies_that_are_not_equal_have_no_digest():
    """As two processes with a copy each: one text more, of copy 1."""
    pending = digests.Digests({"x": jnp.arange(3)})
    for change, same in ((0, True), (1, False)):

        def exchange(text, change=change):
            ((_, one, other, bad),) = json.loads(text)["x"]
            return [text, json.dumps({"x": [[1, one + change, other, bad]]})]

        assert (pending.result(exchange)[0]["x"]["digest"] != "differs") == same


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


def test_orbax_itself_opens_a_checkpoint(workdir, initial):
    """With a plain manager, which is not told what the items are."""
    state = jax.tree.map(np.asarray, state_of(initial, 3))
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        assert manager.latest_step() == 3
        restored = manager.restore(3)
        args = ocp.checkpoint_utils.construct_restore_args(initial.params)
        args = ocp.args.PyTreeRestore(initial.params, restore_args=args)
        on_devices = manager.restore(3, args=ocp.args.Composite(params=args))
    assert restored["meta"]["step"] == 3
    named = digests.named(state.opt_state)
    assert {n: x.tobytes() for n, x in digests.named(restored["opt_state"]).items()} == {
        n: x.tobytes() for n, x in named.items()
    }
    assert bits(on_devices["params"]) == bits(state.params)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(on_devices["params"]))


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
    monkeypatch.setattr(storage, "FORMAT", 3)
    with pytest.raises(UserError, match="format 2 and this program reads 3"):
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
