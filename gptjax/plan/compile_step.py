"""Compiles the train step for a card that need not be here, and reads off what it needs.

XLA needs a description of the card and the compiler plugin of JAX for CUDA, but no GPU and no
driver: the optional extra `target`. Library calls are chosen without measuring, so the program may
differ in details from the one that the card itself would tune; its buffers are the same kind.
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
from gptjax.model.config import GPTConfig
from gptjax.plan import hlo_traffic
from gptjax.plan.devices import CARDS, Card, Target
from gptjax.plan.step_cost import abstract_step, cudnn_assumed
from gptjax.step.sharding import make_mesh

# Instructions that XLA's rematerialization has made, by the name it gives them.
_REMATERIALIZED = re.compile(r"^\s*(?:ROOT )?%?[\w.-]*\.remat\d*[\w.]* =", re.MULTILINE)

# By compute capability, from the tables of NVIDIA's CUDA programming guide: threads and shared
# memory of a multiprocessor, shared memory that one block may ask for, and float32 units.
_CHIPS = {
    (8, 0): (2048, 167936, 166912, 64),
    (8, 6): (1536, 102400, 101376, 128),
    (8, 9): (1536, 102400, 101376, 128),
    (9, 0): (2048, 233472, 232448, 128),
}


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What a compiled train step needs of one device, in bytes, and what it moves."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int  # outputs that take the place of donated arguments
    bytes_moved: int  # between the chip and its memory in a step, were there no cache
    n_rematerialized: int  # instructions that XLA computes twice because memory is short
    seconds: float  # that compiling took

    @property
    def total(self) -> int:
        """Peak memory."""
        return self.arguments + self.outputs + self.temporaries - self.aliased


def compile_step(config: ConfigDict, model_config: GPTConfig, target: Target) -> CompiledStep:
    """Compiles the train step of `config` for `target`; runs nothing.

    Raises:
        UserError: the compiler for that card is not installed, or refuses the program.
    """
    mesh = make_mesh(config.mesh.fsdp) if target.is_local else _card_mesh(CARDS[target.name])
    start = time.monotonic()
    steps, state, batch = abstract_step(config, model_config, mesh)
    with cudnn_assumed():
        lowered = steps.train_step.lower(state, batch)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"XLA cannot compile this step for {target.device_kind}: {_first_line(error)}"
        ) from error
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    return CompiledStep(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        bytes_moved=hlo_traffic.bytes_moved(text),
        n_rematerialized=len(_REMATERIALIZED.findall(text)),
        seconds=time.monotonic() - start,
    )


def _card_mesh(card: Card) -> Mesh:
    """Returns a mesh of one such card."""
    try:
        import jax_cuda12_plugin  # noqa: F401
    except ImportError as error:
        raise UserError(
            "compiling for a card that is not here needs JAX's compiler for CUDA: install the "
            "extra `target` (pip install 'gptjax[target]'; no GPU is needed), or leave --compile "
            "out."
        ) from error
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=describe(card), topology="1x1x1"
    )
    return Mesh(
        np.array(topology.devices).reshape(1, 1),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def describe(card: Card) -> str:
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


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
