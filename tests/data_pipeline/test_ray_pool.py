"""The engine on real raylets of this machine, some of which are killed."""

import os
import random
import signal
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path

import pytest
from test_prepare import contents, make_config, make_rows, write_shard

from configs.errors import DataError, UserError
from data_pipeline import prepare, ray_pool

ROOT = Path(__file__).parents[2]
N_SHARDS = 12


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs the package ray, .*gptjax\[ray\]"):
        ray_pool.RayPool()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for i in range(N_SHARDS):
        write_shard(folder / f"{i:02d}.parquet", make_rows(seed=i))
    return folder


@pytest.fixture(scope="module")
def made(shards, tmp_path_factory):
    return prepare.prepare(make_config(shards, tmp_path_factory.mktemp("stores")))


@pytest.fixture
def cluster(monkeypatch):
    """Raylets of one CPU each, which tests add; the head has none."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    import ray
    from ray.cluster_utils import Cluster

    tests = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"), tests]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    memory = {"object_store_memory": 80_000_000}
    head = {"num_cpus": 0, "include_dashboard": False, **memory}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add = lambda: cluster.add_node(num_cpus=1, **memory)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def configured(shards, folder, cluster, monkeypatch):
    config = make_config(shards, folder)
    config.data.engine = "ray"
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("n_nodes", [1, 3])
def test_the_store_is_that_of_one_machine(shards, made, cluster, tmp_path, monkeypatch, n_nodes):
    for _ in range(n_nodes):
        cluster.add()
    store = prepare.prepare(configured(shards, tmp_path, cluster, monkeypatch))
    assert contents(store) == contents(made)


@pytest.mark.slow
def test_raylets_that_are_killed_at_random_moments(shards, made, cluster, tmp_path, monkeypatch):
    """Ten of them; another takes the place of each."""
    import ray

    rng = random.Random(0)
    nodes = [cluster.add() for _ in range(2)]
    ray.init(cluster.address, log_to_driver=False)  # in the main thread, for its signals
    n_killed = n_stores = 0
    with futures.ThreadPoolExecutor(1) as pool:
        while n_killed < 10:
            config = configured(shards, tmp_path / str(n_stores), cluster, monkeypatch)
            store = pool.submit(prepare.prepare, config)
            while not store.done():
                time.sleep(rng.uniform(1, 4))
                if n_killed < 10:
                    node = nodes.pop(rng.randrange(len(nodes)))
                    cluster.remove_node(node, allow_graceful=False)
                    nodes.append(cluster.add())
                    n_killed += 1
            assert contents(store.result()) == contents(made)
            n_stores += 1


@pytest.mark.slow
def test_a_driver_that_is_killed_continues(shards, made, cluster, tmp_path, monkeypatch):
    cluster.add()
    config = configured(shards, tmp_path, cluster, monkeypatch)
    code = f"""
import sys, logging
logging.basicConfig(level="INFO")
import test_prepare as t
from data_pipeline import prepare
config = t.make_config({str(shards)!r}, {str(tmp_path)!r})
config.data.engine = "ray"
prepare.prepare(config)
"""
    seen = []
    for folder, least in (("surveys", 4), ("shards", 3), ("shards", 8)):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        end = time.monotonic() + 120
        while len(list(tmp_path.glob(f".work-*/{folder}/*.json"))) < least:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(len(list(tmp_path.glob(".work-*/shards/*.json"))))
    assert 0 < seen[1] < N_SHARDS
    assert contents(prepare.prepare(config)) == contents(made)


def double(x):
    return 2 * x


def fail(x):
    raise DataError(f"item {x} is bad") if x == 7 else ValueError(x)


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_results_errors_and_lost_tasks(cluster, monkeypatch):
    cluster.add()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setattr(ray_pool, "RETRIES", 1)
    with ray_pool.RayPool() as pool:
        assert sorted(pool.run(double, range(50))) == [(i, 2 * i) for i in range(50)]
        with pytest.raises(DataError, match="item 7 is bad"):
            list(pool.run(fail, [7]))
        with pytest.raises(ValueError, match="3"):
            list(pool.run(fail, [3]))
        with pytest.raises(DataError, match="was lost 2 times"):
            list(pool.run(die, [0]))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_items(cluster, monkeypatch):
    """Ten thousand items; at most so many are submitted at a time, and their memory is flat."""
    cluster.add()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    taken = 0
    resident = []

    def items():
        nonlocal taken
        for i in range(10_000):
            taken += 1
            yield i

    with ray_pool.RayPool() as pool:
        for done, _ in enumerate(pool.run(double, items()), 1):
            assert taken - done <= ray_pool.PER_CPU
            if done in (100, 10_000):
                resident.append(_resident())
    assert resident[1] - resident[0] < 30e6, resident


def _resident():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
