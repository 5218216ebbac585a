"""Checkpoints through Orbax: what is in one, which are kept, and which a run may go on from.

A checkpoint named k holds the state after k optimizer updates, in separate items, so that
parameters can be read alone: `params`, `opt_state`, `rng`, and `meta` (JSON: data position, clock,
configuration, hashes).
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from configs.flags import UserError
from data_pipeline.token_store import TokenStore, differences
from gptjax.train_step import StepFunctions, TrainState

_log = logging.getLogger(__name__)

# A run goes on from a checkpoint only where these agree: else arrays or data would be others.
_SAME = (
    "model.block_size",
    "model.n_layer",
    "model.n_head",
    "model.n_embd",
    "model.bias",
    "seed",
)
_SHOWN = 12  # differences of the data in an error


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a checkpoint knows of its run besides arrays."""

    data_state: dict[str, int] | None = None  # `BatchIterator.state` after the last batch used
    tokens_seen: int = 0  # target tokens, over all restarts
    trained_seconds: float = 0.0  # see `metrics.Clock`
    best_val_loss: float | None = None  # nats per token, of all evaluations so far


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: Path, config: ConfigDict, store: TokenStore):
        """Opens `workdir/checkpoints`, removing what an interrupted save left.

        Args:
            workdir: the run's folder.
            config: the run's configuration, kept in each checkpoint.
            store: what the run trains on; its identity is kept, too.
        """
        self._identity = {
            "config": config.to_dict(),
            "store_hash": store.hash,
            "tokenizer_hash": store.tokenizer.hash,
            "store": store.identity,  # so that a difference can be named
        }
        self._config = config
        best = BestN(
            get_metric_fn=lambda metrics: metrics["val_loss"],
            reverse=True,  # the policy keeps the end of the sorted list: the lowest losses
            n=config.checkpoint.keep_best,
            keep_checkpoints_without_metrics=False,
        )
        latest = LatestN(config.checkpoint.keep_latest)
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([latest, best]),
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """Number of the newest checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: Progress, val_loss: float | None = None) -> None:
        """Saves in the background; does nothing where the step has been saved before.

        Args:
            state: its arrays are copied before this returns, so they may be donated afterwards.
            progress: goes into `meta`.
            val_loss: nats per token; a checkpoint without it is never the best.
        """
        step = int(state.step)
        if self.latest_step is not None and step <= self.latest_step:
            return
        meta = {"step": step, **dataclasses.asdict(progress), **self._identity}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.PyTreeSave(state.params),
                opt_state=ocp.args.PyTreeSave(state.opt_state),
                rng=ocp.args.PyTreeSave({"dropout_key": state.dropout_key}),
                meta=ocp.args.JsonSave(meta),
            ),
            metrics=None if val_loss is None else {"val_loss": val_loss},
        )

    def restore(self, steps: StepFunctions) -> tuple[TrainState, Progress] | None:
        """Returns the newest checkpoint's state, on the devices of `steps`; None without one.

        Raises:
            UserError: if the checkpoint belongs to another model, tokenizer, data set or seed (all
                differences are listed), or cannot be read.
        """
        step = self.latest_step
        if step is None:
            return None
        folder = Path(self._manager.directory) / str(step)
        meta = self._read(step, folder, meta=ocp.args.JsonRestore())["meta"]
        self._check_identity(meta, folder)
        shapes = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            steps.state_shapes,
            steps.state_shardings,
        )
        items = self._read(
            step,
            folder,
            params=_restore_args(shapes.params),
            opt_state=_restore_args(shapes.opt_state),
            rng=_restore_args({"dropout_key": shapes.dropout_key}),
        )
        state = TrainState(
            step=jax.device_put(jax.numpy.int32(step), shapes.step.sharding),
            params=items["params"],
            opt_state=items["opt_state"],
            dropout_key=items["rng"]["dropout_key"],
        )
        progress = Progress(**{f.name: meta[f.name] for f in dataclasses.fields(Progress)})
        _log.info("Continuing from %s.", folder)
        return state, progress

    def _read(self, step: int, folder: Path, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises nearly every kind, the bare one included
            raise UserError(
                f"the checkpoint {folder} cannot be read ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no message'}). Move that folder "
                f"away to continue from the one before it; nothing was changed."
            ) from error

    def _check_identity(self, meta: dict[str, Any], folder: Path) -> None:
        if "store" not in meta:  # see save_params
            raise UserError(
                f"{folder} is an imported model, not a state of a run. Train from it in a workdir "
                f"of its own (--config.workdir=...), with --config.init_from={folder.parents[1]}."
            )
        old, new = ConfigDict(meta["config"]), self._config
        pairs = [(key, _leaf(old, key), _leaf(new, key)) for key in _SAME]
        pairs += [
            (name, meta[name], self._identity[name]) for name in ("tokenizer_hash", "store_hash")
        ]
        accumulates = "train.gradient_accumulation_steps > 1"  # decides what the optimizer keeps
        pairs.append(
            (
                accumulates,
                old.train.gradient_accumulation_steps > 1,
                new.train.gradient_accumulation_steps > 1,
            )
        )
        found = [f"{key}: {a} there, {b} here" for key, a, b in pairs if a != b]
        if meta["store_hash"] != self._identity["store_hash"]:
            # Nothing else may differ: where other versions of the libraries made the files.
            data = differences(meta["store"], self._identity["store"], "data")
            found += [*data[:_SHOWN], *([f"... {len(data):,} in all"] if data[_SHOWN:] else [])]
        if found:
            raise UserError(
                f"{folder} belongs to another run and cannot be continued with this configuration:"
                "\n  - " + "\n  - ".join(found) + "\nGive this run a workdir of its own "
                "(--config.workdir=...), or restore those settings. Nothing was changed."
            )

    def wait(self) -> None:
        """Returns when the last save is on the disk; raises what went wrong with it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and ends the threads."""
        self._manager.close()


def save_params(workdir: Path, params: Any, **meta: Any) -> None:
    """Saves parameters alone as the checkpoint 0 of a new workdir: no run goes on from it."""
    with ocp.CheckpointManager((workdir / "checkpoints").absolute()) as manager:
        args = {"params": ocp.args.PyTreeSave(params), "meta": ocp.args.JsonSave(meta)}
        manager.save(0, args=ocp.args.Composite(**args))


def restore_params(workdir: Path, shapes: Any) -> tuple[Any, int]:
    """Returns (parameters, step) of the best checkpoint by val loss, or else the newest.

    Args:
        workdir: a run's folder.
        shapes: tree of ShapeDtypeStructs of the parameters.

    Raises:
        UserError: if there is no checkpoint.
    """
    path = (workdir / "checkpoints").absolute()
    if not path.is_dir():
        raise UserError(f"{workdir} has no checkpoints yet: train first, with gptjax.main.")
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics["val_loss"], best_mode="min", read_only=True
    )
    with ocp.CheckpointManager(path, options=options) as manager:
        step = manager.best_step()
        if step is None:
            step = manager.latest_step()
        if step is None:
            raise UserError(f"{path} holds no finished checkpoint yet: train first.")
        one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_device), shapes
        )
        items = manager.restore(step, args=ocp.args.Composite(params=_restore_args(placed)))
    return items["params"], step


def _restore_args(shapes: Any) -> ocp.args.PyTreeRestore:
    restore_args = ocp.checkpoint_utils.construct_restore_args(shapes)
    return ocp.args.PyTreeRestore(item=shapes, restore_args=restore_args)


def _leaf(config: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
