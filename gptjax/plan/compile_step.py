"""Compiles train and evaluation step ahead of time, also for a card that this machine lacks.

For such a card XLA needs its description and JAX's compiler plugin for CUDA (the extra `target`),
but no GPU and no driver. Kernels are chosen without autotuning, so the program can differ in
details from the one that the card itself would run.
"""

import dataclasses
import math
import re
import time
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
from jax.stages import Traced
from ml_collections import ConfigDict

from configs.errors import UserError
from gptjax.model import GPTConfig
from gptjax.plan import collectives, hlo, hlo_traffic, step_cost
from gptjax.plan.cards import CARDS, CHIPS, Card
from gptjax.plan.collectives import Collective
from gptjax.plan.devices import Device
from gptjax.plan.hlo_traffic import Transfer
from gptjax.step import make_mesh

# The names of instructions that XLA's rematerialization pass has added.
_REMATERIALIZED = re.compile(r"^\s*(?:ROOT )?%?[\w.-]*\.remat\d*[\w.]* =", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """Memory and traffic of a compiled train step on one device, in bytes."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int  # outputs that reuse the buffers of donated arguments
    evaluation: int  # peak of an evaluation step, beside the state and a batch of training
    transfers: tuple[Transfer, ...]  # memory traffic of a step, without a cache
    collectives: tuple[Collective, ...]  # what the devices exchange in a step
    n_rematerialized: int  # instructions that XLA recomputes because memory is short
    seconds: float  # compile time

    @property
    def total(self) -> int:
        """Peak memory of training or evaluation, whichever is higher."""
        training = self.arguments + self.outputs + self.temporaries - self.aliased
        return max(training, self.evaluation)

    @property
    def bytes_moved(self) -> int:
        """Memory traffic of a step."""
        return sum(transfer.total for transfer in self.transfers)


def compile_step(config: ConfigDict, model_config: GPTConfig, device: Device) -> CompiledStep:
    """Compiles train and evaluation step of `config` for `device`; runs nothing.

    Raises:
        UserError: the compiler for that card is not installed, or rejects a program.
    """
    mesh = make_mesh(config.mesh.fsdp) if device.is_local else _card_mesh(config, device)
    start = time.monotonic()
    steps, state = step_cost.step_functions(config, model_config, mesh)
    memory, text = _compile(step_cost.trace_step(config, steps, state), device)
    program = hlo.parse(text)
    of_evaluation, _ = _compile(step_cost.trace_evaluation(config, steps, state), device)
    eval_batch = of_evaluation.argument_size_in_bytes - _bytes_on_one_device(state.params)
    return CompiledStep(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        evaluation=memory.argument_size_in_bytes
        + eval_batch
        + of_evaluation.output_size_in_bytes
        + of_evaluation.temp_size_in_bytes,
        transfers=tuple(hlo_traffic.transfers(program)),
        collectives=tuple(collectives.collectives(program)),
        n_rematerialized=len(_REMATERIALIZED.findall(text)),
        seconds=time.monotonic() - start,
    )


def _compile(traced: Traced, device: Device) -> tuple[Any, str]:
    """Returns (XLA's analysis of memory, the text of the program)."""
    try:
        lowered = traced.lower()
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"XLA cannot compile this step for {device.kind}: {reason}") from error
    return compiled.memory_analysis(), compiled.as_text() or ""


def _bytes_on_one_device(shapes: Any) -> int:
    leaves = jax.tree.leaves(shapes)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _card_mesh(config: ConfigDict, device: Device) -> Mesh:
    try:
        import jax_cuda12_plugin  # noqa: F401
    except ImportError as error:
        raise UserError(
            "compiling for a card that this machine lacks needs JAX's compiler for CUDA: install "
            "the extra `target` (pip install 'gptjax[target]'; no GPU is needed), or leave "
            "--compile out."
        ) from error
    topology = topologies.get_topology_desc(
        platform="cuda",
        target_config=_target_config(CARDS[device.name]),
        topology=f"1x{device.hosts}x{device.count // device.hosts}",
    )
    return make_mesh(config.mesh.fsdp, topology.devices)


def _target_config(card: Card) -> str:
    """Returns the card as XLA's `GpuTargetConfigProto`, in protobuf's text format."""
    chip = CHIPS[card.compute_capability]
    major, minor = card.compute_capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {chip.shared_bytes}
  shared_memory_per_block_optin: {chip.block_shared_bytes}
  threads_per_core_limit: {chip.max_threads}
  core_count: {card.n_cores}
  fpus_per_core: {chip.float32_units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {round(card.bandwidth_gb_s * 1e9)}
  l2_cache_size: {round(card.l2_mib * 2**20)}
  clock_rate_ghz: {card.clock_ghz}
  device_memory_size: {card.memory_mib * 2**20}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{card.device_kind}"
"""
