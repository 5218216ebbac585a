"""What the Ray engine costs, and how it scales: one raylet against two, and this machine alone.

"by shards" is the work of the Ray engine without Ray: a place that has an address asks for it.

    python -m benchmarks.ray_engine --rounds=3

Each raylet has one CPU; the source is the bundled shard, several times over, under one tokenizer.
Run it on an idle machine of at least two cores.
"""

import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags
from ml_collections import ConfigDict

from configs import quickstart
from data_pipeline import prepare
from data_pipeline.token_store import TokenStore

_SHARDS = 12
_MEMORY = 80_000_000  # bytes of a raylet's object store, which is hardly used


def make_source(folder: Path, copies: int) -> Path:
    """Writes shards of the bundled texts, `copies` times each, with ids of their own."""
    table = pq.read_table("data_pipeline/shard/quickstart.parquet", columns=["text", "id"])
    folder.mkdir()
    for i in range(_SHARDS):
        parts = [
            table.set_column(1, "id", pa.array([f"{i}-{j}-{x}" for x in table["id"].to_pylist()]))
            for j in range(copies)
        ]
        pq.write_table(pa.concat_tables(parts), folder / f"{i:02d}.parquet", row_group_size=500)
    return folder


def seconds(config: ConfigDict) -> tuple[float, str]:
    """Returns how long a preparation takes, and the hash of its store."""
    start = time.monotonic()
    path = prepare.prepare(config)
    return time.monotonic() - start, TokenStore.open(path).hash


def _main(_: list[str]) -> None:
    import ray
    from ray.cluster_utils import Cluster

    values = flags.FLAGS
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(cluster.address, log_to_driver=False)
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        config = quickstart.get_config()
        config.tokenizer.file = str(prepare.prepare(config) / "tokenizer.model")
        config.data.source = str(make_source(top / "source", values.copies))
        config.data.local_dir = str(top / "local")
        config.data.prepare_workers = 1
        times: dict[str, list[float]] = {}
        hashes = set()
        nodes = []
        for k in (1, 2):
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=_MEMORY))
            while ray.cluster_resources().get("CPU", 0) < k:
                time.sleep(0.1)
            for i in range(values.rounds + 1):
                for kind in ("local", "by shards", f"{k} raylets"):
                    config.data.engine = "ray" if "raylets" in kind else "local"
                    place = str(top / f"{kind}-{k}-{i}")
                    config.data.cache_dir = f"memory://{place}" if kind == "by shards" else place
                    taken, store_hash = seconds(config)
                    hashes.add(store_hash)
                    if i:  # the first starts the workers
                        times.setdefault(kind, []).append(taken)
        ray.shutdown()
        cluster.shutdown()
    assert len(hashes) == 1
    for kind, all_seconds in times.items():
        print(f"{kind:10} {statistics.median(all_seconds):6.2f} s  {sorted(all_seconds)}")
    one, two = (statistics.median(times[f"{k} raylets"]) for k in (1, 2))
    print(f"two raylets against one: {one / two:.2f} x")
    for kind in ("local", "by shards"):
        print(f"one raylet against {kind}: {one / statistics.median(times[kind]):.2f} x")


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 3, "Measured preparations of each kind.")
    flags.DEFINE_integer("copies", 2, "How often a shard holds the bundled texts.")
    app.run(_main)
