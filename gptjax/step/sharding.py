"""Where arrays are: on a mesh with the axes `data` and `fsdp`; one device is a mesh of one.

Batches are split over both axes. Parameters and optimizer state are split over `fsdp` (as in ZeRO,
Rajbhandari et al. 2020) and copied over `data`.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")


def make_mesh(fsdp: int, devices: list[Any] | None = None) -> Mesh:
    """Returns a (data, fsdp) mesh over `devices`, by default all; `fsdp` divides their number."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices) // fsdp, fsdp),
        AXES,
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays with a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches [A, B, T]: rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(None, AXES))


def state_shardings(mesh: Mesh, shapes: Any, gather: str) -> Any:
    """Returns a sharding for each leaf of `shapes`, arrays or ShapeDtypeStructs.

    Of the axes that `fsdp` divides, the first is split if it is axis 0, so that a device holds
    whole matrices, else the longest. With `gather` = "layer" the axis of layers is split of Muon's
    momentum only, whose matrices are multiplied whole. Vectors are copied: they are too small to be
    worth it.
    """
    fsdp = mesh.shape["fsdp"]

    def leaf_sharding(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        n_stacked = int(in_blocks(path))
        first = n_stacked if gather == "layer" and not _has_key(path, "muon") else 0
        axes = [i for i in range(first, leaf.ndim) if leaf.shape[i] % fsdp == 0]
        if fsdp == 1 or leaf.ndim - n_stacked < 2 or not axes:
            return replicated(mesh)
        axis = 0 if axes[0] == 0 else max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree_util.tree_map_with_path(leaf_sharding, shapes)


def in_blocks(path: tuple[Any, ...]) -> bool:
    """Returns whether a leaf is stacked by layers: whether it is part of the model's blocks."""
    return _has_key(path, "blocks")


def _has_key(path: tuple[Any, ...], name: str) -> bool:
    return any(getattr(key, "key", None) == name for key in path)


def by_layer(mesh: Mesh, kernel_LDF: jax.Array) -> jax.Array:
    """Splits stacked matrices by layers over `fsdp`, if it divides their number, in traced code."""
    fsdp = mesh.shape["fsdp"]
    if fsdp == 1 or kernel_LDF.shape[0] % fsdp:
        return kernel_LDF
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    return jax.lax.with_sharding_constraint(kernel_LDF, sharding)


def split_axes(shardings: Any) -> Any:
    """Returns for each leaf the axis that is split over `fsdp`, -1 for a copied one."""
    return jax.tree.map(lambda s: s.spec.index("fsdp") if "fsdp" in s.spec else -1, shardings)


def place_batch(sharding: NamedSharding, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's part of a batch on its devices, as a part of the global arrays."""
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
