"""The gradient of a batch and sums over its rows: what runs on each device, and what is exchanged.

Inside `jax.shard_map` a device sees its rows only. With `gather` = "step" it gathers the parameters
that are split once a step (ZeRO-1 and 2 of Rajbhandari et al. 2020), with "layer" those of each
block when they are used, in the compute dtype (ZeRO-3). Gradients are summed over the devices in
float32 and once a step, those of gathered blocks once a micro-step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from gptjax.optim import Optimizer
from gptjax.step import collectives
from gptjax.step.sharding import AXES, batch_sharding, in_blocks, split_axes

Batch = dict[str, Array]
Sums = dict[str, Array]
# (parameters, micro-batch [B, T], a PRNG key for each row or None, weights [K] of later tokens,
# a teacher's parameters or None, gather_block) -> (summed loss, that of next tokens alone in nats)
Loss = Callable[[Any, Batch, Array | None, Array, Any, Any], tuple[Array, Array]]


class ShardedLoss:
    """The loss of a model whose parameters and rows are split over a mesh, and its gradient."""

    def __init__(
        self, loss: Loss, token_bytes_V: Any, mesh: Mesh, shardings: Any, gather: str, dtype: str
    ):
        """Takes the shardings of the parameters, and the dtype in which blocks are gathered."""
        self._loss = loss
        self._token_bytes_V = token_bytes_V  # small: a constant of the compiled steps
        self._mesh = mesh
        self._batch_spec = batch_sharding(mesh).spec
        self._specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
        self._axes = split_axes(shardings)
        by_layer = gather == "layer"
        self._step_axes = jax.tree_util.tree_map_with_path(
            lambda path, axis: -1 if by_layer and in_blocks(path) else axis, self._axes
        )
        self._gather_block = None
        if by_layer and mesh.shape["fsdp"] > 1:
            axes = jax.tree.map(lambda axis: max(axis - 1, -1), self._axes["blocks"])
            self._gather_block = lambda params: collectives.gather_cast(params, axes, dtype)

    def gradients(
        self,
        optimizer: Optimizer,
        params: Any,
        zeros: Any,
        step_key: Array | None,
        batch: Batch,
        later_weights_K: Array,
        row_length: int,
        teacher_params: Any = None,
    ) -> tuple[Any, Sums]:
        """Returns the mean gradient (float32, split as the parameters are) and sums of a batch.

        The gradient is that of the summed loss over A B T. The sums are `nats_A`, the loss of next
        tokens by micro-step, which locates a bad one; `n_targets`, `n_bytes`; and `votes`, if
        processes vote.

        Args:
            optimizer: accumulates the gradients of several micro-steps.
            zeros: zeros like the parameters, where the accumulation starts; unused with A = 1.
            step_key: raw key data (uint32 [2]); None without dropout.
            batch: arrays [A, B, T].
            later_weights_K: see `multi_token_loss`.
            row_length: rows are cut into rows of so many tokens, which do not see each other.
            teacher_params: whole on each device; None without a teacher.
        """
        nominal_targets = batch["inputs"][0].size  # of a micro-step; masked ones count

        def local(
            params: Any,
            zeros: Any,
            key: Array | None,
            batch: Batch,
            weights_K: Array,
            teacher_params: Any,
        ) -> tuple[Any, Sums]:
            batch = dict(batch)
            votes = {name: jnp.sum(batch.pop(name), (0, 1)) for name in batch.keys() & {"votes"}}
            batch = {name: x.reshape(len(x), -1, row_length) for name, x in batch.items()}
            params = collectives.gather(params, self._step_axes)
            n_micro, n_rows, _ = batch["inputs"].shape
            rows_B = self._first_row(n_rows) + jnp.arange(n_rows)

            def gradient(micro: Batch, index: Array) -> tuple[Any, Array]:
                keys_B = None
                if key is not None:
                    micro_key = jax.random.fold_in(jax.random.wrap_key_data(key), index)
                    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(micro_key, rows_B)

                def mean_loss(params: Any) -> tuple[Array, Array]:
                    total, nats = self._loss(
                        params, micro, keys_B, weights_K, teacher_params, self._gather_block
                    )
                    return total / nominal_targets, nats

                return jax.grad(mean_loss, has_aux=True)(params)

            def micro_step(total: Any, xs: tuple[Batch, Array]) -> tuple[Any, Array]:
                grads, nats = gradient(*xs)
                return optimizer.accumulate(grads, total), nats

            if n_micro == 1:
                micro = {name: x[0] for name, x in batch.items()}
                grads, nats = gradient(micro, jnp.zeros((), int))
                nats_A = nats[None]
            else:
                start = jax.tree.map(
                    lambda zero, p, axis: zero if axis < 0 else jnp.zeros_like(p),
                    *(zeros, params, self._step_axes),
                )
                total, nats_A = jax.lax.scan(
                    micro_step, optimizer.accumulator(start), (batch, jnp.arange(n_micro))
                )
                grads = total.acc_grads
            sums = {"nats_A": nats_A, **self._counts(batch), **votes}
            return self._sum(grads), collectives.total(sums, self._mesh)

        like_zeros = self._specs if zeros is not None else PartitionSpec()
        whole = PartitionSpec()
        return jax.shard_map(
            local,
            mesh=self._mesh,
            in_specs=(self._specs, like_zeros, whole, self._batch_spec, whole, whole),
            out_specs=(self._specs, whole),
            check_vma=False,  # of a kernel, JAX does not know what varies
        )(params, zeros, step_key, batch, later_weights_K, teacher_params)

    def sums(self, params: Any, batch: Batch) -> Sums:
        """Returns `nats`, `n_targets` and `n_bytes` of a batch [1, B, T], without dropout."""

        def local(params: Any, batch: Batch) -> Sums:
            params = collectives.gather(params, self._step_axes)
            micro = {name: array[0] for name, array in batch.items()}
            _, nats = self._loss(params, micro, None, jnp.zeros(0), None, self._gather_block)
            return collectives.total({"nats": nats, **self._counts(batch)}, self._mesh)

        return jax.shard_map(
            local,
            mesh=self._mesh,
            in_specs=(self._specs, self._batch_spec),
            out_specs=PartitionSpec(),
            check_vma=False,
        )(params, batch)

    def _first_row(self, n_rows: int) -> Array | int:
        """Returns the number of this device's first row in the micro-batch of all devices."""
        return jax.lax.axis_index(AXES) * n_rows if self._mesh.size > 1 else 0

    def _counts(self, batch: Batch) -> Sums:
        mask = batch["loss_mask"].astype(jnp.int32)
        return {
            "n_targets": jnp.sum(mask),
            "n_bytes": jnp.sum(jnp.asarray(self._token_bytes_V)[batch["targets"]] * mask),
        }

    def _sum(self, grads: Any) -> Any:
        """Sums the gradients of all devices; of a split parameter each has its shard."""

        def add(x: Array, axis: int, step_axis: int) -> Array:
            if axis < 0:
                return collectives.total(x, self._mesh)
            if step_axis >= 0:
                x = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=step_axis, tiled=True)
            return collectives.total(x, self._mesh, ("data",))

        return jax.tree.map(add, grads, self._axes, self._step_axes)
