"""The newest good checkpoint of a run, chosen by all processes, each of which reads its part."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from configs.errors import UserError
from gptjax.checkpoint import items, storage
from gptjax.checkpoint.compatibility import changes, incompatibilities
from gptjax.checkpoint.items import Damaged
from gptjax.step.multihost import exchange, on_process_zero, together

_log = logging.getLogger(__name__)


def newest_good(
    folder: Path, identity: dict[str, Any], shapes: Mapping[str, Any]
) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
    """Returns (step, trees of arrays by item, meta) of the newest good checkpoint in `folder`.

    None where there is no checkpoint. `identity` is that of the run, see `compatibility`; `shapes`
    are trees of ShapeDtypeStructs by item, None for one that the run does not have. Damaged ones
    that are newer are set aside. Raises UserError, with nothing changed, if the checkpoint belongs
    to another run or to another version of this program, or if all are damaged.
    """
    damaged: dict[Path, str] = {}
    while (
        step := on_process_zero(lambda: _newest(folder, identity, shapes, damaged), UserError)
    ) >= 0:
        path = folder / str(step)
        try:
            trees, meta = _read(path, shapes)
        except Damaged as error:  # on all processes
            damaged[path] = str(error)
            continue
        on_process_zero(lambda: _set_aside(damaged), OSError)
        _log.info("Continuing from %s.", path)
        return step, {**shapes, **trees}, meta
    return None


def _newest(
    folder: Path, identity: dict[str, Any], shapes: Mapping[str, Any], damaged: dict[Path, str]
) -> int:
    """Returns the newest step whose files are good, but for their values; -1 without any.

    Those `damaged`, by their reasons, are passed over; more are added.
    """
    for step in reversed(storage.list_steps(folder)):
        path = folder / str(step)
        if path in damaged:
            continue
        try:
            meta = storage.read_meta(path)
            _check_identity(path, meta, identity)
            # Where only one of checkpoint and run has EMA weights: None has no leaves.
            for name, tree in shapes.items():
                storage.require_shapes(meta["arrays"].get(name, {}), tree, path)
            items.check(path, meta)
        except Damaged as error:
            damaged[path] = str(error)
            continue
        return step
    if damaged:
        lines = "\n  - ".join(f"{path}: {reason}" for path, reason in damaged.items())
        raise UserError(
            f"no checkpoint of this run is good:\n  - {lines}\nNothing was changed. To train "
            f"from step 0, give another --config.workdir, or move {folder} away."
        )
    return -1


def _check_identity(path: Path, meta: dict[str, Any], identity: dict[str, Any]) -> None:
    if "store" not in meta:  # see save_params
        raise UserError(
            f"{path} is an imported model, not a state of a run. Train from it in a workdir "
            f"of its own (--config.workdir=...), with --config.init_from={path.parents[1]}."
        )
    if problems := incompatibilities(meta, identity):
        raise UserError(
            f"{path} belongs to another run and cannot be resumed with this configuration:"
            "\n  - " + "\n  - ".join(problems) + "\nGive this run a workdir of its own "
            "(--config.workdir=...), or restore those settings. Nothing was changed."
        )
    for text in changes(meta, identity):
        _log.info("Changed since %s: %s.", path, text)


def _read(path: Path, shapes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (trees by item, meta). Raises Damaged, on all processes, if a value is not good."""

    def load() -> tuple[dict[str, Any], dict[str, Any]]:
        meta = storage.read_meta(path)
        present = {name: tree for name, tree in shapes.items() if jax.tree.leaves(tree)}
        return items.load(path, meta, present), meta

    trees, meta = together(load, Damaged, UserError)
    items.compare(trees, meta, exchange)
    return trees, meta


def _set_aside(damaged: Mapping[Path, str]) -> None:
    for path, reason in damaged.items():
        target = storage.set_aside(path)
        _log.error("%s is DAMAGED: %s. Set aside: %s", path, reason, target)
