"""Stores on S3, by a local server of moto: made by both engines, trained from, with its tools."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_prepare import contents, make_config, make_rows, write_shard

from data_pipeline import prepare
from data_pipeline.folders import fsspec_of
from data_pipeline.token_store import TokenStore

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """The address of an empty folder, which this process and those that it starts can reach."""
    pytest.importorskip("s3fs", reason="needs the package s3fs")
    server = pytest.importorskip("moto.server", reason="needs the package moto[server]")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(key, "us-east-1")
    server = server.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    system, _ = fsspec_of("s3://bucket")
    system.clear_instance_cache()  # of another server
    fsspec_of("s3://bucket")[0].makedirs("bucket", exist_ok=True)  # moto's state outlives it
    yield f"s3://bucket/{tmp_path.name}"
    server.stop()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for i in range(4):
        write_shard(folder / f"{i}.parquet", make_rows(seed=i))
    return folder


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_the_store_is_that_of_one_disk(shards, bucket, tmp_path, monkeypatch, engine):
    made = prepare.prepare(make_config(shards, tmp_path / "disk"))
    config = make_config(shards, bucket, n_workers=2)
    config.data.engine = engine
    config.data.local_dir = str(tmp_path / "local")
    if engine == "ray":
        pytest.importorskip("ray", reason="needs the extra `ray`")
        from ray.cluster_utils import Cluster

        tests = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
        path = os.pathsep.join([*tests, os.environ.get("PYTHONPATH", "")])
        monkeypatch.setenv("PYTHONPATH", path)
        memory = {"object_store_memory": 80_000_000}
        head = {"num_cpus": 0, "include_dashboard": False, **memory}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1, **memory)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    store = TokenStore.open(prepare.prepare(config))
    if engine == "ray":
        cluster.shutdown()
    system, root = fsspec_of(f"{bucket}/{made.name}")
    system.invalidate_cache()
    found = {path.removeprefix(f"{root}/"): system.cat_file(path) for path in system.find(root)}
    assert found == contents(made)
    assert {name.rpartition("/")[2][:9] for name in system.ls(bucket)} == {
        made.name[:9],
        ".prepared",
    }
    assert store.hash == TokenStore.open(made).hash
    split, expected = store.split("train"), TokenStore.open(made).split("train")
    assert split.doc_lengths.tolist() == expected.doc_lengths.tolist()
    assert split.read(5, 0, 9).tolist() == expected.read(5, 0, 9).tolist()


def test_a_run_trains_from_it(bucket, tmp_path):
    settings = [
        *("configs/debug.py", f"workdir={tmp_path / 'run'}", f"data.cache_dir={bucket}"),
        *(f"data.local_dir={tmp_path / 'local'}", "train.max_iters=4", "eval.eval_interval=2"),
    ]
    for module in ("gptjax.main", "gptjax.main", "gptjax.evaluate", "data_pipeline.browse"):
        arguments = settings
        if module == "gptjax.evaluate":
            store = next((tmp_path / "local").glob("quickstart-*"))
            arguments = [f"--workdir={tmp_path / 'run'}", f"--store={store}"]
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    assert any((tmp_path / "local").glob("*/00000-train.tokens"))
