"""Checkpoints of 1, 2 and 4 processes of one device each, which hold a share of each array."""

import json

import pytest
from test_other_devices import free_address, results, start

from gptjax.checkpoint import Checkpoints, verify

SAVE = """
n = jax.process_count()
config, steps = make(n)
def values(step):
    rng = np.random.default_rng(step)
    def draw(x, sharding):
        shape = x.shape
        whole = rng.normal(size=shape).astype(x.dtype) if x.dtype == np.float32 else np.full(
            shape, step, x.dtype)
        return jax.make_array_from_callback(shape, sharding, whole.__getitem__)
    return jax.tree.map(draw, steps.state_shapes, steps.state_shardings)
"""

SAVE_ONE = (
    SAVE
    + """
save(root / f"{n}", config, values(5), manager.RunProgress())
print(json.dumps(t.bits(host_copy(values(5)))))
"""
)

RESTORE_ALL = """
config, steps = make(jax.process_count())
found = {n: t.bits(host_copy(restore(root / n, config, steps)[0])) for n in "124"}
print(json.dumps(found))
"""


def run(code, store, folder, n):
    address = free_address()
    return results(
        [start(code, store, folder, processes=n, process=i, address=address) for i in range(n)]
    )


@pytest.mark.slow
def test_nine_pairs(store, tmp_path):
    expected = {text for n in (1, 2, 4) for text in run(SAVE_ONE, store, tmp_path, n)}
    assert len(expected) == 1  # all have saved the same
    arrays = [
        json.loads((tmp_path / n / "checkpoints/5/meta/metadata").read_text())["arrays"]
        for n in "124"
    ]
    assert arrays[0] == arrays[1] == arrays[2]
    files = [len(list((tmp_path / n / "checkpoints/5/params/wte").glob("*.0"))) for n in "124"]
    assert files == [1, 2, 4]  # each process has written its own
    (value,) = expected
    for n in (1, 2, 4):
        assert run(RESTORE_ALL, store, tmp_path, n) == [dict.fromkeys("124", value)] * n


KILLED = (
    SAVE
    + """
import signal
checkpoints = manager.Checkpoints(root / "run", config, store)
checkpoints.finish(values(1), manager.RunProgress())
shards, real = manager.shards, manager.shards.Block
written = []
def block(*args):
    written.append(args)
    if jax.process_index() == 1 and len(written) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
shards.Block = block
checkpoints.save(values(2), manager.RunProgress())
checkpoints.wait()
"""
)


@pytest.mark.slow
def test_killed_while_all_save(store, steps, debug_config, tmp_path):
    for at in (1, 5, 20):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        address = free_address()
        both = [
            start(
                KILLED.replace("{at}", str(at)),
                store,
                folder,
                processes=2,
                process=i,
                address=address,
            )
            for i in range(2)
        ]
        assert both[1].wait(300) == -9
        both[0].kill()  # its own end is that of JAX's heartbeat
        both[0].wait()
        names = {p.name for p in (folder / "run" / "checkpoints").iterdir()}
        assert {name for name in names if name[0] != "."} == {"1"}
        assert verify(folder / "run") == {1: ""}
        checkpoints = Checkpoints(folder / "run", debug_config, store)
        state, _ = checkpoints.restore(steps)
        checkpoints.close()
        assert int(state.step) == 1
        assert [p.name for p in (folder / "run" / "checkpoints").iterdir()] == ["1"]
