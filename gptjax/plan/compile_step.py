"""Compiles the train step ahead of time, also for a card that this machine lacks.

For such a card XLA needs its description and JAX's compiler plugin for CUDA (the extra `target`),
but no GPU and no driver. Kernels are chosen without autotuning, so the program can differ in
details from the one that the card itself would run.
"""

import dataclasses
import re
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from configs.errors import UserError
from gptjax.model import GPTConfig
from gptjax.plan import hlo_traffic, step_cost
from gptjax.plan.devices import CARDS, Card, Device
from gptjax.plan.hlo_traffic import Transfer
from gptjax.step import make_mesh

# The names of instructions that XLA's rematerialization pass has added.
_REMATERIALIZED = re.compile(r"^\s*(?:ROOT )?%?[\w.-]*\.remat\d*[\w.]* =", re.MULTILINE)

# By compute capability, from NVIDIA's CUDA programming guide: threads and shared memory of a
# multiprocessor, the shared memory that one block can opt in to, float32 units.
_CHIPS = {
    (8, 0): (2048, 167936, 166912, 64),
    (8, 6): (1536, 102400, 101376, 128),
    (8, 9): (1536, 102400, 101376, 128),
    (9, 0): (2048, 233472, 232448, 128),
}


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """Memory and traffic of a compiled train step on one device, in bytes."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int  # outputs that reuse the buffers of donated arguments
    transfers: tuple[Transfer, ...]  # memory traffic of a step, without a cache
    n_rematerialized: int  # instructions that XLA recomputes because memory is short
    seconds: float  # compile time

    @property
    def total(self) -> int:
        """Peak memory."""
        return self.arguments + self.outputs + self.temporaries - self.aliased

    @property
    def bytes_moved(self) -> int:
        """Memory traffic of a step."""
        return sum(transfer.total for transfer in self.transfers)


def compile_step(config: ConfigDict, model_config: GPTConfig, device: Device) -> CompiledStep:
    """Compiles the train step of `config` for `device`; runs nothing.

    Raises:
        UserError: the compiler for that card is not installed, or rejects the program.
    """
    mesh = make_mesh(config.mesh.fsdp) if device.is_local else _card_mesh(CARDS[device.name])
    start = time.monotonic()
    traced, _ = step_cost.trace_step(config, model_config, mesh)
    try:
        lowered = traced.lower()
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"XLA cannot compile this step for {device.kind}: {reason}") from error
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    return CompiledStep(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        transfers=tuple(hlo_traffic.transfers(text)),
        n_rematerialized=len(_REMATERIALIZED.findall(text)),
        seconds=time.monotonic() - start,
    )


def _card_mesh(card: Card) -> Mesh:
    try:
        import jax_cuda12_plugin  # noqa: F401
    except ImportError as error:
        raise UserError(
            "compiling for a card that this machine lacks needs JAX's compiler for CUDA: install "
            "the extra `target` (pip install 'gptjax[target]'; no GPU is needed), or leave "
            "--compile out."
        ) from error
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=_target_config(card), topology="1x1x1"
    )
    return Mesh(
        np.array(topology.devices).reshape(1, 1),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def _target_config(card: Card) -> str:
    """Returns the card as XLA's `GpuTargetConfigProto`, in protobuf's text format."""
    threads, shared, shared_optin, fpus = _CHIPS[card.compute_capability]
    major, minor = card.compute_capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared_optin}
  threads_per_core_limit: {threads}
  core_count: {card.n_cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {round(card.bandwidth_gb_s * 1e9)}
  l2_cache_size: {card.l2_mib * 2**20}
  clock_rate_ghz: {card.clock_ghz}
  device_memory_size: {card.memory_mib * 2**20}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{card.device_kind}"
"""
