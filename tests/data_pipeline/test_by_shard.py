"""Stores made shard by shard: the bytes of those made on one machine, however they are made.

Tasks run in this process here; those of real Ray nodes in test_ray_pool.py.
"""

import json
import operator

import numpy as np
import pytest
from test_prepare import contents, make_config, make_rows, write_shard

from configs.errors import DataError, UserError
from data_pipeline import by_shard, encode, folders, mirror, prepare, shard_tasks, worker_pool
from data_pipeline.sources import find, text_files
from data_pipeline.sources.documents import Columns
from data_pipeline.token_store import TokenStore


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Every row group becomes a part."""
    monkeypatch.setattr(encode, "PART_BYTES", 1)


class InProcess(worker_pool.Pool):
    """In the place of `RayPool`."""

    def __init__(self):
        super().__init__(1, 1)


@pytest.fixture
def ray(monkeypatch):
    monkeypatch.setattr(by_shard, "RayPool", InProcess)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Three files with equal texts within and across them."""
    folder = tmp_path_factory.mktemp("shards")
    rows = make_rows()
    for name, cut in {"a": slice(90), "b": slice(90, 200), "c": slice(200, None)}.items():
        write_shard(folder / f"{name}.parquet", rows[cut])
    return folder


@pytest.fixture(scope="session")
def made(shards, tmp_path_factory):
    """The store as one machine makes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "PART_BYTES", 1)
        return prepare.prepare(make_config(shards, tmp_path_factory.mktemp("stores")))


def configured(shards, tmp_path, cache_dir, engine="ray", **data):
    config = make_config(shards, cache_dir)
    config.data.engine = engine
    config.data.local_dir = str(tmp_path / "local")
    config.data.update(data)
    return config


def in_memory(address):
    """Name -> bytes of the files below an address of fsspec's memory."""
    system, root = folders.fsspec_of(address)
    return {p.removeprefix(f"{root}/"): system.cat_file(p) for p in system.find(root)}


def test_the_store_is_that_of_one_machine(shards, made, tmp_path, ray):
    store = prepare.prepare(configured(shards, tmp_path, tmp_path / "disk"))
    assert store == tmp_path / "disk" / made.name
    assert contents(store) == contents(made)
    names = {path.name for path in store.parent.iterdir()}
    assert len(names) == 2 and any(name.startswith(".prepared-") for name in names)


def test_drop_duplicates_and_a_given_tokenizer(shards, made, tmp_path, ray):
    for name in ("one", "shards"):
        config = configured(
            shards, tmp_path, tmp_path / name, "ray" if name == "shards" else "local"
        )
        config.data.drop_duplicates = True
        config.tokenizer.file = str(made / "tokenizer.model")
        prepare.prepare(config)
    one, by_shards = (next((tmp_path / name).glob("a+2*")) for name in ("one", "shards"))
    assert contents(one) == contents(by_shards)
    assert TokenStore.open(one).manifest["skipped"]["duplicate"] > 0


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_an_object_store_has_it_and_a_mirror_what_is_used(shards, made, tmp_path, ray, engine):
    address = f"memory://{tmp_path.name}"
    config = configured(shards, tmp_path, address, engine)
    path = prepare.prepare(config)
    assert path == tmp_path / "local" / made.name
    stored = in_memory(f"{address}/{made.name}")
    assert stored == contents(made)
    assert {p.name for p in path.iterdir()} == {"manifest.json", "tokenizer.model", "remote.json"}
    ours, theirs = TokenStore.open(path), TokenStore.open(made)
    assert ours.hash == theirs.hash
    assert prepare.require(config) == path
    for name in ("val", "train"):
        a, b = ours.split(name), theirs.split(name)
        assert a.n_docs == b.n_docs
        for doc, length in enumerate(b.doc_lengths):
            assert a.read(doc, 0, length).tolist() == b.read(doc, 0, length).tolist()
        assert a.doc_id(a.n_docs - 1) == b.doc_id(a.n_docs - 1)
    assert ours.verify() == len(theirs.manifest["files"])
    assert prepare.prepared(config, ours.hash).path == path


def test_a_finished_store_is_not_made_again(shards, tmp_path, monkeypatch, ray):
    address = f"memory://{tmp_path.name}"
    config = configured(shards, tmp_path, address)
    with pytest.raises(DataError, match="no token store.*gptjax prepare"):
        prepare.require(config)
    path = prepare.prepare(config)
    monkeypatch.setattr(by_shard.Making, "make", operator.itemgetter(None))
    assert prepare.prepare(config) == path


@pytest.mark.parametrize(
    ("place", "every"),
    [
        ("disk", 6),
        *(pytest.param(place, 1, marks=pytest.mark.slow) for place in ("disk", "memory")),
    ],
)
def test_interrupted_at_any_write_it_ends_the_same(
    shards, tmp_path, made, monkeypatch, ray, place, every
):
    kind = folders._Disk if place == "disk" else folders._ObjectStore
    left = 0
    for name in ("write", "upload"):
        inner = getattr(kind, name)

        def counted(self, *arguments, inner=inner):
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            inner(self, *arguments)

        monkeypatch.setattr(kind, name, counted)
    expected = None
    for n in (1000, *range(1, 40, every)):  # 1000: unbroken
        cache = tmp_path / str(n) if place == "disk" else f"memory://{tmp_path.name}-{n}"
        config = configured(shards, tmp_path, cache, drop_duplicates=True)
        config.tokenizer.file = str(made / "tokenizer.model")  # training takes longer than all
        for attempt in (n, 3, 0):  # interrupted twice
            left = attempt
            try:
                name = prepare.prepare(config).name
                break
            except KeyboardInterrupt:
                assert attempt
        found = contents(cache / name) if place == "disk" else in_memory(f"{cache}/{name}")
        expected = expected or found
        assert found == expected, n


def test_a_file_that_changes_between_two_readings(shards, tmp_path, monkeypatch, ray):
    source = tmp_path / "source"
    source.mkdir()
    for path in shards.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    inner = by_shard.Making._compare

    def change(self, n_usable):
        write_shard(source / "b.parquet", make_rows(seed=3))
        return inner(self, n_usable)

    monkeypatch.setattr(by_shard.Making, "_compare", change)
    with pytest.raises(DataError, match=r"b\.parquet: the file changed while the store was made"):
        prepare.prepare(configured(source, tmp_path, tmp_path / "stores"))


def test_damage_is_reported_as_on_one_machine(tmp_path, ray):
    (tmp_path / "a").mkdir()
    for name in ("a", "b"):
        shard = write_shard(tmp_path / "a" / f"{name}.parquet", make_rows(seed=ord(name)))
    import pyarrow.parquet as pq

    offset = pq.ParquetFile(shard).metadata.row_group(7).column(0).data_page_offset
    with shard.open("r+b") as f:
        f.seek(offset)
        f.write(b"\xff" * 16)
    stores = []
    for engine in ("local", "ray"):
        config = configured(tmp_path / "a", tmp_path, tmp_path / engine, engine)
        with pytest.raises(DataError, match=r"b\.parquet: row group 7, column 'text'"):
            prepare.prepare(config)
        config.data.on_corrupt = "keep_before"
        stores.append(prepare.prepare(config))
    assert contents(stores[0]) == contents(stores[1])
    assert TokenStore.open(stores[1]).manifest["damaged"]


def test_text_of_every_kind_is_as_on_one_machine(tmp_path, monkeypatch, ray):
    """Text files of one document each share a shard; ids are names in the source."""
    monkeypatch.setattr(text_files, "GROUP_BYTES", 2000)
    monkeypatch.setattr(text_files, "GROUP_FILES", 20)
    source = tmp_path / "source"
    (source / "more").mkdir(parents=True)
    texts = [row["text"] for row in make_rows() if row["text"]]
    for i, text in enumerate(texts[:90]):
        (source / "more" / f"{i:03d}.txt").write_text(text)
    lines = [json.dumps({"text": text, "name": f"n{i}"}) + "\n" for i, text in enumerate(texts)]
    for i, part in enumerate((lines[:100], lines[100:])):
        (source / f"{i}.jsonl").write_text("".join(part))
    stores = []
    for engine in ("local", "ray"):
        config = configured(f"{source}/**", tmp_path, tmp_path / engine, engine)
        stores.append(prepare.prepare(config))
    assert stores[0].name == stores[1].name and contents(stores[0]) == contents(stores[1])
    pieces = TokenStore.open(stores[1]).manifest["pieces"]
    names = [piece["source"] for piece in pieces]
    assert names[:2] == ["0.jsonl", "1.jsonl"] and len(names) > 5
    assert all(name.startswith("more/") and "+" in name for name in names[2:-1])


def test_a_remote_source_is_downloaded_by_the_tasks(shards, made, tmp_path, ray):
    """Nothing but the store stays on this machine; a file that changes there is noticed."""
    system, root = folders.fsspec_of(f"memory://{tmp_path.name}-source")
    for path in shards.iterdir():
        system.pipe_file(f"{root}/{path.name}", path.read_bytes())
    config = configured(f"memory:/{root}", tmp_path, tmp_path / "stores")
    store = prepare.prepare(config)
    assert contents(store) == contents(made)
    assert not any(path.suffix == ".parquet" for path in tmp_path.rglob("*"))
    system.pipe_file(f"{root}/a.parquet", (shards / "b.parquet").read_bytes())
    assert prepare.prepare(config) != store


@pytest.fixture
def mirrored(shards, made, tmp_path, ray):
    """A mirror that has nothing yet, and the sizes of the store's files."""
    address = f"memory://{tmp_path.name}"
    path = prepare.prepare(configured(shards, tmp_path, address))
    sizes = {n: r["size_bytes"] for n, r in TokenStore.open(path).manifest["files"].items()}
    return path, f"{address}/{made.name}", sizes


def files_of(path):
    return {p.name for p in path.glob("0*")}


def test_a_mirror_stays_below_its_bound(mirrored):
    path, address, sizes = mirrored
    store = TokenStore.open(path)
    store.split("val")
    val = {name for name in sizes if "-val." in name and not name.endswith(".rows")}
    train = {name for name in sizes if "-train." in name and not name.endswith(".rows")}
    assert files_of(path) == val
    bound = sum(sizes[name] for name in train) + sizes["00000-val.tokens"]
    always = ("manifest.json", "tokenizer.model")
    mirror.make(address, path.parent, bound, always)
    store = TokenStore.open(path)
    store._files.path("00000-val.tokens")  # the last of them to be used
    tokens = store.split("train").read(0, 0, 2)
    assert files_of(path) == train | {"00000-val.tokens"}
    mirror.make(address, path.parent, sizes["00000-train.tokens"], always)
    store = TokenStore.open(path)
    (path / "00000-train.tokens").unlink()
    with pytest.raises(DataError, match=r"more than data\.cache_bytes = "):
        store.split("train")
    store._files.path("00000-val.rows")
    assert sum(sizes[name] for name in files_of(path)) <= sizes["00000-train.tokens"]
    assert tokens.tolist()  # of a file that was removed


def test_a_damaged_or_missing_file_of_an_object_store_is_named(mirrored):
    path, address, _ = mirrored
    system, root = folders.fsspec_of(address)
    data = bytearray(system.cat_file(f"{root}/00001-train.tokens"))
    data[5] ^= 1
    system.pipe_file(f"{root}/00001-train.tokens", bytes(data))
    with pytest.raises(DataError, match=r"00001-train\.tokens: the contents have changed"):
        TokenStore.open(path).split("train")
    system.rm_file(f"{root}/00002-val.lengths")
    with pytest.raises(DataError, match=r"00002-val\.lengths: the file is missing"):
        TokenStore.open(path).split("val")
    assert not {p.name for p in path.glob(".*.tmp")}


def test_a_store_that_was_made_again_replaces_the_mirror(mirrored):
    path, address, _ = mirrored
    TokenStore.open(path).split("val")
    system, root = folders.fsspec_of(address)
    manifest = json.loads(system.cat_file(f"{root}/manifest.json"))
    system.pipe_file(f"{root}/manifest.json", json.dumps(manifest).encode())
    mirror.make(address, path.parent, 10**9, ("manifest.json", "tokenizer.model"))
    assert not files_of(path)


def test_places_that_do_not_exist(tmp_path, ray, shards):
    config = configured(shards, tmp_path, "nonsense://bucket")
    with pytest.raises(UserError, match=r"nonsense://bucket: this address cannot be used"):
        prepare.prepare(config)


def test_scratch_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_tasks.tempfile, "tempdir", str(tmp_path))
    abandoned = tmp_path / "gptjax-shard-x.d"
    (abandoned / "store").mkdir(parents=True)
    with shard_tasks.scratch() as one:
        assert not abandoned.exists()
        with shard_tasks.scratch() as two:
            assert one.is_dir() and two.is_dir() and one != two
    assert [path.name for path in tmp_path.iterdir()] == ["gptjax-shard-lock"]


def test_hashes_are_those_of_the_parts(shards, tmp_path):
    unit = find.Unit("parquet", (("c.parquet", shards / "c.parquet"),))
    task = shard_tasks.Task(2, unit, Columns(), str(tmp_path), str(tmp_path), 0.2, False)
    shard_tasks.survey(task)
    hashes = np.fromfile(tmp_path / shard_tasks.hashes_name(2), shard_tasks.HASH)
    rows = [row for row in make_rows()[200:] if row["text"]]
    assert hashes["val"].tolist() == [encode.is_val(row["id"], 0.2) for row in rows]
    assert hashes["text_hash"].tolist() == [encode.hash_text(r["text"].encode()) for r in rows]
