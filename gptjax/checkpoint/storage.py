"""One checkpoint on disk: written by Orbax whole or not at all, and proved when it is read.

A checkpoint is a folder named by its step. It has an item for each tree of arrays, so that they can
be read alone, and `meta`, JSON, which holds a digest of every array and one of itself.
"""

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from configs.errors import UserError
from data_pipeline.files import fsync_folder, hash_json
from gptjax.checkpoint import digests

FORMAT = 1  # raise it when the meaning of what is saved changes
DAMAGED = "damaged"  # folder for checkpoints that were set aside
_UNFINISHED = re.compile(r"\.\d+\.(saving|removing)\b.*")
_SYNCS = 8  # files at a time: a journal commits them together
_tries = itertools.count()


class Damaged(Exception):
    """What a folder holds is not what was saved there; the message says how it differs."""


class NotFinite(UserError):
    """The state has values that are infinite or not numbers, and was not saved."""


def list_steps(folder: Path) -> list[int]:
    """Returns the steps that `folder` has checkpoints of, sorted; [] where it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if re.fullmatch(r"\d+", p.name))


def write(folder: Path, items: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint; when this returns it survives a power failure.

    Args:
        folder: becomes `.../<step>`; does not exist yet.
        items: trees of NumPy arrays by name.
        meta: JSON, beside what is added here.

    Raises:
        NotFinite: if an array holds a value that is not finite; nothing is written then.
        Exception: what Orbax and the file system raise; nothing is left behind then.
    """
    arrays = {name: digests.named(tree) for name, tree in items.items()}
    if bad := [f"{i}/{name}" for i in arrays for name in digests.not_finite(arrays[i])]:
        raise NotFinite(
            f"the state after step {folder.name} is not finite and was not saved (in "
            f"{len(bad)} arrays, the first: {bad[0]}). The checkpoints before it are good: run "
            f"again with a lower --config.optim.learning_rate or more --config.optim.warmup_iters."
        )
    meta = {
        "format": FORMAT,
        **meta,
        "arrays": {item: digests.records(arrays[item]) for item in arrays},
    }
    # A name for each try: threads of one that failed may still write when the next begins.
    unfinished = folder.with_name(f".{folder.name}.saving-{next(_tries)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        clean(folder.parent)
        args = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
        args["meta"] = ocp.args.JsonSave({**meta, "sha256": hash_json(meta)})
        with _checkpointer(args) as checkpointer:
            checkpointer.save(unfinished.absolute(), args=ocp.args.Composite(**args))
        _fsync_tree(unfinished)
        unfinished.rename(folder)
        fsync_folder(folder.parent)
    except BaseException:
        clean(folder.parent)
        raise


def read_meta(folder: Path) -> dict[str, Any]:
    """Returns what `write` was given as `meta`, and `arrays`: the records of each item.

    Raises:
        Damaged: if it is not what was written, or belongs to another step.
        UserError: if it is good, but of another format.
    """
    try:
        meta = json.loads((folder / "meta" / "metadata").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"its meta cannot be read ({summary(error)})") from error
    if not isinstance(meta, dict) or "sha256" not in meta:
        raise Damaged("its meta has no digest")
    expected = meta.pop("sha256")
    if hash_json(meta) != expected:
        raise Damaged("its meta is not what was saved")
    if meta["format"] != FORMAT:
        raise UserError(
            f"{folder} has format {meta['format']} and this program reads {FORMAT}: continue it "
            f"with the version of gptjax that wrote it. Nothing was changed."
        )
    if meta["step"] != int(folder.name):
        raise Damaged(f"it holds step {meta['step']}")
    if bad := [item for item in meta["arrays"] if not re.fullmatch("[a-z_]+", item)]:
        raise Damaged(f"{bad[0]!r} is no name of an item")  # it could lead out of the folder
    return meta


def val_loss(folder: Path) -> float | None:
    """Returns the val loss in a checkpoint's meta; None where it has none, or cannot be read."""
    try:
        return read_meta(folder)["val_loss"]
    except (Damaged, UserError):
        return None


def read(
    folder: Path, items: Sequence[str] | None = None
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Returns (arrays by item and name, meta) after comparing them with their digests.

    Args:
        folder: a checkpoint.
        items: which items to read; None for all.

    Raises:
        Damaged: if anything is not what was saved.
        UserError: see `read_meta`.
    """
    meta = read_meta(folder)
    arrays, found = {}, []
    for item in meta["arrays"] if items is None else items:
        tree = _read(folder, item)
        arrays[item] = digests.named(tree)
        if other := [n for n, a in arrays[item].items() if not isinstance(a, np.ndarray)]:
            raise Damaged(f"{item}/{other[0]} is no array")
        found += [f"{item}/{text}" for text in digests.damage(arrays[item], meta["arrays"][item])]
    if found:
        raise Damaged("; ".join(found[:3]) + (f"; and {len(found) - 3} more" * (len(found) > 3)))
    return arrays, meta


def place(arrays: Mapping[str, np.ndarray], shapes: Any, folder: Path) -> Any:
    """Returns the tree of `shapes` with the arrays of these names, on the devices it names.

    Args:
        arrays: by name, from `read`.
        shapes: tree of ShapeDtypeStructs with shardings.
        folder: for the message.

    Raises:
        UserError: if names, shapes or dtypes are others.
    """
    leaves = digests.named(shapes)
    there = {name: f"{a.dtype}{list(a.shape)}" for name, a in arrays.items()}
    here = {name: f"{x.dtype}{list(x.shape)}" for name, x in leaves.items()}
    if there != here:
        differing = sorted(n for n in there | here if there.get(n) != here.get(n))
        texts = [f"{n}: {there.get(n)} there, {here.get(n)} here" for n in differing[:12]]
        raise UserError(
            f"{folder} is good, but this version of gptjax has other arrays ({len(differing)}):"
            "\n  - " + "\n  - ".join(texts) + "\nContinue it with the version that wrote it."
        )
    placed = [
        jax.make_array_from_callback(x.shape, x.sharding, arrays[name].__getitem__)
        for name, x in leaves.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), placed)


def set_aside(folder: Path) -> Path:
    """Moves a damaged checkpoint to where nothing reads it, and returns that place."""
    home = folder.parent / DAMAGED
    home.mkdir(exist_ok=True)
    names = itertools.chain([folder.name], (f"{folder.name}-{i}" for i in itertools.count(2)))
    target = next(home / name for name in names if not (home / name).exists())
    folder.rename(target)
    fsync_folder(home)
    fsync_folder(folder.parent)
    return target


def remove(folder: Path) -> None:
    """Deletes a checkpoint: renamed first, so that half a one never bears its name."""
    doomed = folder.with_name(f".{folder.name}.removing")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clean(folder: Path) -> None:
    """Deletes what interrupted saves and removals left in `folder`."""
    if folder.is_dir():
        for path in folder.iterdir():
            if _UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def _read(folder: Path, item: str) -> Any:
    if not (folder / item).is_dir():
        raise Damaged(f"its folder {item} is missing")
    try:
        with _checkpointer([item]) as checkpointer:
            args = ocp.args.Composite(**{item: ocp.args.PyTreeRestore()})
            return checkpointer.restore(folder.absolute(), args=args)[item]
    except MemoryError:
        raise
    except Exception as error:  # Orbax raises nearly every kind, the bare one included
        raise Damaged(summary(error)) from error


def summary(error: Exception) -> str:
    """Returns kind and first line of an error, for libraries tell much."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def _checkpointer(items: Iterable[str]) -> ocp.Checkpointer:
    """Returns a checkpointer for these trees, and `meta`, of this process alone.

    Each array becomes a folder of its own. Orbax's default, OCDBT, has fewer files, but leaves some
    50 KB of memory behind with each save (tensorstore 0.1.86). Both are read.
    """
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
    )
    handlers = {
        name: ocp.JsonCheckpointHandler(multiprocessing_options=alone)
        if name == "meta"
        else ocp.PyTreeCheckpointHandler(use_ocdbt=False, multiprocessing_options=alone)
        for name in items
    }
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone), **handlers
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _fsync_tree(folder: Path) -> None:
    """Makes a folder survive a power failure: its files, many at a time, then their names."""
    folders = [(Path(root), names) for root, _, names in os.walk(folder)]
    with ThreadPoolExecutor(_SYNCS) as pool:
        list(pool.map(_fsync, (root / name for root, names in folders for name in names)))
        list(pool.map(fsync_folder, (root for root, _ in folders)))


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
