"""One checkpoint on disk: written by Orbax whole or not at all, and verified when it is read.

A checkpoint is a folder named by its step. It has an item for each tree of arrays, which can be
read alone, and the JSON item `meta`, with a digest of every array and one of itself. Each process
writes its shards; process 0 writes the headers and `meta`, and renames the folder after all.

Orbax's CheckpointManager is not used: it neither syncs before it renames nor keeps digests.
"""

import contextlib
import errno
import itertools
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from configs.errors import DataError, UserError
from configs.read import mismatch, read_json
from configs.validate import MAX_STEPS
from configs.workdir import completed
from data_pipeline.files import differences, fsync, hash_json
from gptjax.checkpoint import digests, shards
from gptjax.checkpoint import items as item_files
from gptjax.checkpoint.items import MAX_JSON, Damaged, open_checkpointer
from gptjax.checkpoint.late_writes import silence_late_writes
from gptjax.common.workdir import CHECKPOINTS
from gptjax.step.multihost import exchange, on_process_zero, together

FORMAT = 2  # raise it when the meaning of what is saved changes
DAMAGED = "damaged"  # folder for checkpoints that were set aside
_SAVING = ".saving-"  # in the name of a folder that is being written
_UNFINISHED = re.compile(r"\.\d+\.(saving|removing)\b.*")
_SAVES = "saves"  # channel of the processes' threads that save
_tries = itertools.count()
_HEAD = {"format": int, "step": int, "sha256": str}  # of the meta of any format
_RECORDS = {str: {"dtype": str, "shape": [int], "digest": str}}
_META = {"val_loss": (float, None), "arrays": {str: _RECORDS}}
_RUN = {  # compatibility.identity, and RunProgress
    "config": dict,
    "store_hash": str,
    "tokenizer_hash": str,
    "store": dict,
    "environment": dict,
    "progress": {
        "data_state": ({str: int}, None),
        "tokens_seen": int,
        "trained_seconds": float,
        "best_val_loss": (float, None),
    },
}


class NotFinite(UserError):
    """The state holds infinities or NaNs, and was not saved."""


def list_steps(folder: Path) -> list[int]:
    """Returns the sorted steps of the checkpoints in `folder`; [] where it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if re.fullmatch(r"\d+", p.name))


def write(
    folder: Path,
    copy: shards.Copy,
    meta: Mapping[str, Any],
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Writes a checkpoint, which survives a power failure once this returns; all call this.

    `folder` is `.../<step>` and does not exist yet; `copy` is that of `shards.copy` and is used up;
    `meta` is JSON, to which `format`, `arrays` and `sha256` are added; `prepare` runs on process 0
    before the first file.

    Raises, on all processes:
        NotFinite: if an array holds a value that is not finite.
        OSError: if the disk has less free space than the arrays have bytes.
        Exception: of any kind, from Orbax or the file system. Nothing is left behind.
    """
    records, bad = copy.digests().result(lambda text: exchange(text, _SAVES))
    if bad:
        raise NotFinite(
            f"the state after step {folder.name} is not finite and was not saved (in "
            f"{len(bad)} arrays, the first: {bad[0]}). The checkpoints before it are good: run "
            f"again with a lower --config.optim.learning_rate or more --config.optim.warmup_iters."
        )
    if differing := [name for name, record in records.items() if record["digest"] == "differs"]:
        raise UserError(
            f"the copies of {len(differing)} arrays on several devices are not equal, the first: "
            f"{differing[0]}"
        )
    arrays: dict[str, digests.Records] = {item: {} for item in copy.headers}
    for name, record in records.items():
        item, _, array = name.partition("/")
        arrays[item][array] = record
    meta = {"format": FORMAT, **meta, "arrays": arrays}

    def begin() -> str:
        prepare()
        return _begin(folder, copy.headers, meta).name

    try:
        name = on_process_zero(begin, UserError, Exception, channel=_SAVES)
        unfinished = folder.with_name(name)
        together(
            lambda: shards.write(unfinished, copy.blocks), UserError, Exception, channel=_SAVES
        )
        on_process_zero(lambda: _publish(unfinished, folder), Exception, channel=_SAVES)
    except BaseException:
        if jax.process_index() == 0:
            clean(folder.parent)
        raise


def _begin(folder: Path, headers: Mapping[str, Any], meta: Mapping[str, Any]) -> Path:
    """Writes all but the values to a folder of another name, and returns it."""
    # A new name for each try: threads of a failed one may still be writing.
    unfinished = folder.with_name(f".{folder.name}{_SAVING}{next(_tries)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    clean(folder.parent)
    _check_space(folder.parent, sum(x.nbytes for x in jax.tree.leaves(headers)))
    silence_late_writes(_SAVING)
    args = {name: ocp.args.PyTreeSave(tree) for name, tree in headers.items()}
    args["meta"] = ocp.args.JsonSave({**meta, "sha256": hash_json(meta)})
    with open_checkpointer(args) as checkpointer:
        checkpointer.save(unfinished.absolute(), args=ocp.args.Composite(**args))
    return unfinished


def _publish(unfinished: Path, folder: Path) -> None:
    _fsync_tree(unfinished)
    unfinished.rename(folder)
    fsync(folder.parent)


def _check_space(folder: Path, needed: int) -> None:
    """Raises before Orbax begins what it cannot end: compressed, arrays are hardly smaller."""
    if needed > (free := shutil.disk_usage(folder).free):
        text = f"{os.strerror(errno.ENOSPC)}: {needed / 1e9:.3g} GB needed, {free / 1e9:.3g} free"
        raise OSError(errno.ENOSPC, text, str(folder))


def read_meta(folder: Path) -> dict[str, Any]:
    """Returns the `meta` given to `write`, with `arrays`: the records of each item.

    Raises:
        Damaged: if it is not what was written, or belongs to another step.
        UserError: if it is good, but of another format.
    """
    try:
        meta = read_json(folder / "meta" / "metadata", MAX_JSON, _HEAD)
    except DataError as error:
        raise Damaged(f"its meta cannot be read ({error})") from error
    expected = meta.pop("sha256")
    if hash_json(meta) != expected:
        raise Damaged("its meta is not what was saved")
    if meta["format"] != FORMAT:
        raise UserError(
            f"{folder} has format {meta['format']} and this program reads {FORMAT}: resume it with "
            f"the version of gptjax that wrote it. Nothing was changed."
        )
    if meta["step"] != int(folder.name) or meta["step"] > MAX_STEPS:
        raise Damaged(f"it holds step {meta['step']}")
    if bad := _problem(meta):
        raise Damaged(f"in its meta, {bad}")
    return meta


def _problem(meta: dict[str, Any]) -> str:
    """Returns what is wrong with a meta, which can be forged, or ""."""
    of_a_run = "store" in meta  # an imported model is of none
    if problem := mismatch(meta, _META | (_RUN if of_a_run else {})):
        return problem
    if bad := [item for item in meta["arrays"] if not re.fullmatch("[a-z_]+", item)]:
        return f"{bad[0]!r} is not an item's name"  # it could lead out of the folder
    if "params" not in meta["arrays"]:
        return "there are no parameters"
    try:
        for records in meta["arrays"].values():
            digests.n_bytes(records)
        if of_a_run:
            completed(meta["config"])
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def by_val_loss(folder: Path) -> list[int]:
    """Returns the steps in `folder` by their val loss, the lowest first; of equals, the newest.

    Steps without a val loss, or with a damaged meta, are left out; so are those whose val loss is
    of another number of validation rows than the newest one's, which cannot be compared with it.
    """
    losses, rows = {}, {}
    for step in list_steps(folder):
        with contextlib.suppress(Damaged, UserError):
            meta = read_meta(folder / str(step))
            if meta["val_loss"] is not None and "progress" in meta:
                losses[step], rows[step] = meta["val_loss"], meta["progress"].get("val_rows")
    comparable = [step for step in losses if rows[step] == rows[max(rows)]]
    return sorted(comparable, key=lambda step: (losses[step], -step))


def read(folder: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Returns (arrays by item and name, meta), compared with their digests, in host memory.

    Raises Damaged if anything is not what was saved, and UserError as `read_meta` does.
    """
    meta = read_meta(folder)
    sharding = jax.sharding.SingleDeviceSharding(host_device())
    shapes = {
        item: {
            name: jax.ShapeDtypeStruct(r["shape"], jnp.dtype(r["dtype"]), sharding=sharding)
            for name, r in records.items()
        }
        for item, records in meta["arrays"].items()
    }
    arrays = read_arrays(folder, meta, shapes)
    return {item: {n: np.asarray(x) for n, x in arrays[item].items()} for item in arrays}, meta


def host_device() -> jax.Device:
    """Returns the CPU, so that arrays need no memory of an accelerator, where JAX has it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return jax.local_devices()[0]


def read_arrays(folder: Path, meta: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the trees of arrays of some items, compared with their digests.

    `meta` is that of `read_meta`; `shapes` are trees of ShapeDtypeStructs by item, which have
    passed `require_shapes`, on devices of this process. Raises Damaged if an array is not what was
    saved, and UserError if there is too little memory.
    """
    item_files.check(folder, meta, shapes)
    trees = item_files.load(folder, meta, shapes)
    item_files.compare(trees, meta, lambda text: [text])
    return trees


def require_shapes(records: digests.Records, shapes: Any, folder: Path) -> None:
    """Raises UserError if the records of an item are not of the arrays `shapes`, a tree."""
    saved = {name: f"{record['dtype']}{record['shape']}" for name, record in records.items()}
    current = {n: f"{x.dtype}{list(x.shape)}" for n, x in digests.named(shapes).items()}
    if problems := differences(saved, current):
        raise UserError(
            f"{folder} has other arrays than this version of gptjax has ({len(problems)}):"
            "\n  - " + "\n  - ".join(problems[:12]) + "\nUse the version that wrote it."
        )


def verify(workdir: Path) -> dict[int, str]:
    """Reads every checkpoint of a workdir; returns by step what is wrong with it, "" if nothing.

    Raises UserError if there is none.
    """
    problems = {}
    for step in list_steps(workdir / CHECKPOINTS):
        try:
            read(workdir / CHECKPOINTS / str(step))
            problems[step] = ""
        except Damaged as error:
            problems[step] = str(error)
    if not problems:
        raise UserError(f"{workdir} holds no finished checkpoint.")
    return problems


def set_aside(folder: Path) -> Path:
    """Moves a damaged checkpoint to a folder that nothing reads; returns its new path."""
    parent = folder.parent / DAMAGED
    parent.mkdir(exist_ok=True)
    names = itertools.chain([folder.name], (f"{folder.name}-{i}" for i in itertools.count(2)))
    target = next(parent / name for name in names if not (parent / name).exists())
    folder.rename(target)
    fsync(parent)
    fsync(folder.parent)
    return target


def remove(folder: Path) -> None:
    """Deletes a checkpoint, renamed first: half of one never has its name."""
    doomed = folder.with_name(f".{folder.name}.removing")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clean(folder: Path) -> None:
    """Deletes what interrupted saves and removals left in the folder of checkpoints."""
    if folder.is_dir():
        for path in folder.iterdir():
            if _UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def _fsync_tree(folder: Path) -> None:
    """Makes a folder survive a power failure: its files first, then their names."""
    paths = [folder, *folder.rglob("*")]
    with ThreadPoolExecutor(8) as pool:  # a journal commits their files together
        list(pool.map(fsync, filter(Path.is_file, paths)))
        list(pool.map(fsync, filter(Path.is_dir, paths)))
