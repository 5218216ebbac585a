"""Where arrays are: on a mesh with the axes `data` and `fsdp`; one device is a mesh of one.

Batches are split over both axes. Parameters and optimizer state are split over `fsdp` (as in ZeRO,
Rajbhandari et al. 2020) and copied over `data`.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(fsdp: int, devices: list[Any] | None = None) -> Mesh:
    """Returns a (data, fsdp) mesh over `devices`, by default all; `fsdp` divides their number."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices) // fsdp, fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays with a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches [A, B, T]: rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))


def state_shardings(mesh: Mesh, shapes: Any) -> Any:
    """Returns a sharding for each leaf of `shapes`, arrays or ShapeDtypeStructs.

    The longest axis that `fsdp` divides is split.
    """
    fsdp = mesh.shape["fsdp"]

    def leaf_sharding(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [i for i, n in enumerate(leaf.shape) if n % fsdp == 0]
        if fsdp == 1 or leaf.ndim < 2 or not axes:  # vectors are too small to be worth it
            return replicated(mesh)
        longest = max(axes, key=lambda i: leaf.shape[i])
        spec = PartitionSpec(*("fsdp" if i == longest else None for i in range(leaf.ndim)))
        return NamedSharding(mesh, spec)

    return jax.tree.map(leaf_sharding, shapes)


def place_batch(sharding: NamedSharding, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's part of a batch on its devices, as a part of the global arrays."""
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
