"""What the devices of a run must exchange in a step, and the speed that this leaves: a prediction.

The least, by arithmetic: gradients are summed over all devices once a step, and parameters that are
split over `mesh.fsdp` are gathered once a step, both in float32. With `mesh.gather` = "layer" the
blocks are gathered in the compute dtype for each forward and each backward pass, and their
gradients summed over `mesh.fsdp` in every micro-step.

The efficiency is the share of a step's time in which devices compute,

    efficiency = compute / (compute + exchange)
    compute = FLOPs of the model in a step / (0.4 x peak FLOP/s of all devices)
    exchange = sum over collectives of bytes that a device sends / (0.7 x rate)

where nothing overlaps, and `rate` is that of the slowest link in the collective's ring: the link of
a device to the others in its host, or, if the ring leaves the host, this device's part of the
host's network. A host sends as much as one device for each group with devices in it; of D devices
in a host, n of them in a group, there are D / n, so that a group has n / D of the network.

0.4 and 0.7 are assumptions. The bytes are exact, the efficiency is not measured.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from gptjax.model import GPTConfig, init
from gptjax.plan.cards import Link
from gptjax.plan.collectives import Collective
from gptjax.plan.devices import Device
from gptjax.step import sharding

ASSUMED_MFU = 0.4  # share of the peak that steps of this size reach, if nothing was measured
ASSUMED_SHARE = 0.7  # of a link's rate that collectives of hundreds of megabytes reach

NETWORKS = (Link("8 x 400 Gb/s InfiniBand", 400e9), Link("100 Gb/s Ethernet", 12.5e9))  # of a host

_XLA_DTYPES = {"float32": "f32", "bfloat16": "bf16"}


def minimum(config: ConfigDict, model_config: GPTConfig, n_devices: int) -> list[Collective]:
    """Returns the exchange of one optimizer step on `n_devices`, [] for one."""
    fsdp, n_micro = config.mesh.fsdp, config.train.gradient_accumulation_steps
    sizes = _sizes(model_config, n_devices, fsdp, config.mesh.gather)
    all_devices, sharing, copies = range(n_devices), range(fsdp), range(0, n_devices, fsdp)
    split, blocks = sizes["split"], sizes["blocks"]
    dtype = model_config.compute_dtype
    gathered = blocks // 4 * jnp.dtype(dtype).itemsize // fsdp
    exchange = [
        ("all-gather", "f32", split // fsdp, sharing, 1, "parameters"),
        ("all-gather", _XLA_DTYPES[dtype], gathered, sharing, 2 * n_micro, "blocks"),
        ("reduce-scatter", "f32", blocks, sharing, n_micro, "gradients of blocks"),
        ("reduce-scatter", "f32", split, sharing, 1, "gradients"),
        ("all-reduce", "f32", (split + blocks) // fsdp, copies, 1, "gradients"),
        ("all-reduce", "f32", sizes["copied"], all_devices, 1, "gradients"),
    ]
    collectives = [Collective(*values) for values in exchange]
    return [c for c in collectives if c.bytes and len(c.group) > 1]


def _sizes(model_config: GPTConfig, n_devices: int, fsdp: int, gather: str) -> Counter[str]:
    """Returns float32 bytes of parameters: copied, split, or in blocks gathered by layer."""
    mesh: Any = AbstractMesh((n_devices // fsdp, fsdp), sharding.AXES)  # a Mesh without devices
    shapes = jax.eval_shape(lambda: init(model_config, jax.random.key(0)))
    shardings = jax.tree.leaves(sharding.state_shardings(mesh, shapes, gather))
    leaves, _ = jax.tree.flatten_with_path(shapes)
    sizes: Counter[str] = Counter()
    for (path, leaf), placed in zip(leaves, shardings, strict=True):
        by_layer = gather == "layer" and sharding.in_blocks(path)
        whole = "blocks" if by_layer else "split"
        sizes["copied" if placed.is_fully_replicated else whole] += 4 * leaf.size
    return sizes


def efficiency(
    collectives: Iterable[Collective], flops: float, device: Device, network: Link | None
) -> float | None:
    """Returns the predicted share of a step in which devices compute; None for an unknown device.

    `flops` are the model's, of a step on all devices. Hosts are connected by `network`; None: by
    what connects the devices in a host.
    """
    if device.link is None or device.peak_flops is None:
        return None
    in_host, seconds = device.count // device.hosts, 0.0
    for collective in collectives:
        rate, group = device.link.bytes_per_sec, collective.group
        neighbours = sum(i // in_host == group[0] // in_host for i in group)
        if network is not None and neighbours < len(group):
            rate = min(rate, network.bytes_per_sec * neighbours / in_host)
        seconds += collective.wire_bytes / (ASSUMED_SHARE * rate)
    compute = flops / (ASSUMED_MFU * device.peak_flops * device.count)
    return compute / (compute + seconds)
