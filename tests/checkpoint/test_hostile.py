"""Checkpoints made by somebody who can compute digests: what they claim is compared first."""

import json
import os

import pytest
from helpers import forge, state_of

from configs.errors import UserError
from gptjax.checkpoint import Checkpoints, RunProgress, storage, verify
from gptjax.inference import load


@pytest.fixture(scope="module")
def saved(debug_config, store, initial, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir, debug_config, store)
    checkpoints.save(state_of(initial, 3), RunProgress({"next_row": 8}, 256, 0.1, 5.0), 5.0)
    checkpoints.close()
    return workdir


@pytest.fixture
def folder(workdir):
    return workdir / "checkpoints" / "3"


def header(folder, **changes):
    path = folder / "params" / "wte" / ".zarray"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


HUGE = [1 << 17, 1 << 17]  # float32: 64 GiB


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": HUGE, "chunks": HUGE},  # tensorstore ends the process
        {"shape": HUGE},
        {"chunks": HUGE},
        {"dtype": "<f8"},
        {"dtype": "|O"},
    ],
)
def test_a_header_that_claims_another_array_is_not_believed(workdir, folder, changes):
    header(folder, **changes)
    assert "params/wte" in verify(workdir)[3]


def test_a_size_that_all_files_agree_on_is_compared_with_the_memory(workdir, folder, steps):
    forge(folder, lambda meta: meta["arrays"]["params"]["wte"].update(shape=[1 << 22, 1 << 22]))
    header(folder, shape=[1 << 22, 1 << 22], chunks=[1 << 22, 1 << 22])
    with pytest.raises(UserError, match="holds 70368.7 GB of arrays, and this machine has"):
        verify(workdir)
    with pytest.raises(UserError, match="other arrays.*\n.*wte: float32.4194304, 4194304. saved"):
        load.restore_params(workdir, steps.state_shapes.params)


def value_types(folder, kind):
    path = folder / "params" / "_METADATA"
    path.write_text(path.read_text().replace("np.ndarray", kind))


@pytest.mark.parametrize("kind", ["scalar", "string", "x"])
def test_an_array_that_is_called_something_else(workdir, folder, kind):
    value_types(folder, kind)
    header(folder, shape=HUGE, chunks=HUGE)
    assert verify(workdir)[3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda meta: meta.clear(), "lacks"),
        (lambda meta: [meta.pop(k) for k in list(meta) if k not in ("format", "step")], "lacks"),
        (lambda meta: meta.update(arrays={}), "there are no parameters"),
        (lambda meta: meta.update(arrays=[1]), "arrays is .1. and not an object"),
        (lambda meta: meta["arrays"]["params"].update(wte={}), "wte lacks dtype"),
        (lambda meta: meta["arrays"]["params"]["wte"].update(shape=[512, -32]), "wte"),
        (lambda meta: meta["arrays"]["params"]["wte"].update(dtype="float33"), "float33"),
        (lambda meta: meta.update(val_loss="x"), 'val_loss is "x"'),
        (lambda meta: meta.update(step="3"), 'step is "3"'),
        (lambda meta: meta.update(progress=[]), "progress is .. and not an object"),
        (lambda meta: meta.update(config=3), "config is 3 and not an object"),
        (lambda meta: meta["config"].update(model=3), "configuration"),
    ],
)
def test_a_meta_that_says_nothing_is_not_good(workdir, folder, change, words):
    forge(folder, change)
    with pytest.raises(storage.Damaged, match=words):
        storage.read(folder)
    assert list(verify(workdir)) == [3] and verify(workdir)[3]


def deep(path):
    path.write_text("[" * 100_000)


@pytest.mark.parametrize("make", [os.mkfifo, deep, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", ["meta/metadata", "params/wte/.zarray", "params/wte/0.0"])
def test_what_is_no_file_of_a_checkpoint(workdir, folder, name, make):
    (folder / name).unlink()
    make(folder / name)
    assert verify(workdir)[3]


def test_a_file_larger_than_all_arrays(workdir, folder):
    os.truncate(folder / "params" / "_METADATA", 1 << 40)
    assert "_METADATA is no file of it" in verify(workdir)[3]
