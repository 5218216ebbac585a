"""The figures of a run before it starts: size, data, compute, memory, time on a device."""

import copy
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.common.workdir import read_metrics
from gptjax.model import GPTConfig, attention, count_params, flops_per_token
from gptjax.plan import compile_step as compiler
from gptjax.plan import exchange, memory, step_cost
from gptjax.plan.cards import CARDS, Link
from gptjax.plan.collectives import Collective
from gptjax.plan.compile_step import CompiledStep
from gptjax.plan.devices import Device
from gptjax.plan.memory import Memory
from gptjax.plan.run_data import Data
from gptjax.plan.step_cost import StepCost

_MAX_COMPILATIONS = 6  # of the search for the largest batch; usually one or two


@dataclasses.dataclass(frozen=True)
class Plan:
    """The size of a run, which follows from the configuration, the data and the device."""

    config: ConfigDict  # with `auto` resolved for the device
    model_config: GPTConfig
    device: Device
    data: Data
    n_params: int
    n_params_non_embedding: int
    flops_per_token: int  # of the model, and of a teacher's forward pass, without recomputation
    cost: StepCost  # of one optimizer step, with recomputation
    estimate: Memory
    exchange: list[Collective]  # of one optimizer step: the least, by arithmetic
    compiled: CompiledStep | None  # None: memory is estimated
    largest_batch: int  # rows of a micro-step that fit
    measured_tokens_per_sec: float | None  # by the run in this workdir, on this machine

    @property
    def tokens_per_step(self) -> int:
        """Target tokens of an optimizer step."""
        train = self.config.train
        return train.batch_size * train.gradient_accumulation_steps * self.model_config.block_size

    @property
    def tokens(self) -> int:
        """Target tokens of the whole run."""
        return self.tokens_per_step * self.config.train.max_iters

    @property
    def passes(self) -> float | None:
        """Epochs of the training split, of a mixture's most read one; None if that is unknown."""
        return self.tokens / self.data.pass_tokens if self.data.pass_tokens else None

    @property
    def peak_bytes(self) -> int:
        """Memory of one device at the peak of a step."""
        return self.estimate.total if self.compiled is None else self.compiled.total

    @property
    def fits(self) -> bool:
        """Whether a step fits into the memory budget of the device."""
        return self.peak_bytes <= self.device.budget_bytes

    @property
    def arithmetic_seconds(self) -> dict[str, float]:
        """Time of an optimizer step's matmuls at the peak, by arithmetic; {} if unknown."""
        peaks, count = self.device.peaks, self.device.count
        flops = self.cost.flops_by_arithmetic
        return {name: n / (count * peaks[name]) for name, n in flops.items()} if peaks else {}

    @property
    def step_seconds(self) -> tuple[float, float, float] | None:
        """Roofline of an optimizer step: arithmetic, traffic, each operation at its own bound.

        None if the peaks or the bandwidth of the device are unknown.
        """
        bandwidth, count = self.device.bandwidth, self.device.count
        if not self.device.peaks or bandwidth is None:
            return None
        arithmetic = sum(self.arithmetic_seconds.values())
        at_best = self.cost.seconds(self.device.peaks, bandwidth) / count
        return arithmetic, self.cost.bytes / (count * bandwidth), at_best

    def efficiency(self, network: Link | None) -> float | None:
        """Returns the predicted share of a step in which devices compute: see `exchange`."""
        collectives = self.exchange if self.compiled is None else self.compiled.collectives
        flops = self.tokens_per_step * self.flops_per_token
        return exchange.efficiency(collectives, flops, self.device, network)

    def seconds_at(self, mfu: float) -> float | None:
        """Returns the duration of the run at a share of the peak; None if that is unknown."""
        if self.device.peak_flops is None:
            return None
        flops = self.tokens * self.flops_per_token
        return flops / (mfu * self.device.peak_flops * self.device.count)


def make_plan(
    config: ConfigDict, device: Device, data: Data, *, compile_step: bool = False
) -> Plan:
    """Returns the plan of a run of a validated configuration; allocates nothing on a device.

    Memory is estimated, or with `compile_step` read off the compiled step.

    Raises:
        UserError: the step cannot be compiled for the device.
    """
    config = resolve_auto(config, device)
    model_config = GPTConfig.from_config(config, config.tokenizer.vocab_size)
    n_params, n_params_non_embedding = count_params(model_config)
    cost = step_cost.analyze(config, model_config)
    estimate_at = _estimator(config, model_config, cost, device.count)
    measured = measured_tokens_per_sec(Path(config.workdir)) if device.is_local else None
    compiled = None
    if compile_step:
        compiled = compiler.compile_step(config, model_config, device)
        largest = _largest_compiled(config, model_config, device, compiled, estimate_at)
    else:
        step = memory.batch_step(config.model, device.count)
        largest = memory.largest_batch(lambda b: estimate_at(b).total <= device.budget_bytes, step)
    return Plan(
        config=config,
        model_config=model_config,
        device=device,
        data=data,
        n_params=n_params,
        n_params_non_embedding=n_params_non_embedding,
        flops_per_token=flops_per_token(model_config, cost.teacher),
        cost=cost,
        estimate=estimate_at(config.train.batch_size),
        exchange=exchange.minimum(config, model_config, device.count),
        compiled=compiled,
        largest_batch=largest,
        measured_tokens_per_sec=measured,
    )


def resolve_auto(config: ConfigDict, device: Device) -> ConfigDict:
    """Returns a copy of `config` with `auto` resolved for a card that this machine lacks."""
    config = copy.deepcopy(config)
    if device.is_local:
        return config
    model = config.model
    if model.compute_dtype == "auto":
        model.compute_dtype = "bfloat16"
    if model.attention == "auto" and CARDS[device.name].compute_capability < (8, 0):
        model.attention = "chunked"  # both kernels are for Ampere and later
    elif model.attention == "auto":
        width = model.n_embd // model.n_head
        cudnn = model.compute_dtype == "bfloat16" and attention.fits_cudnn(width)
        names = attention.kernels(config.data.document_mask)
        model.attention = next(name for name in names if name != "cudnn" or cudnn)
    return config


def _estimator(
    config: ConfigDict, model_config: GPTConfig, cost: StepCost, n_devices: int
) -> Callable[[int], Memory]:
    """Returns batch size -> Memory; saved activations are linear in the batch size."""
    rows = config.train.batch_size
    twice = step_cost.analyze(memory.with_batch_size(config, 2 * rows), model_config)
    per_row = (twice.kept_bytes - cost.kept_bytes) / rows

    def estimate_at(batch_size: int) -> Memory:
        kept = round(cost.kept_bytes + (batch_size - rows) * per_row)
        resized = memory.with_batch_size(config, batch_size)
        resized_cost = dataclasses.replace(cost, kept_bytes=kept)
        return memory.estimate(resized, model_config, resized_cost, n_devices)

    return estimate_at


def _largest_compiled(
    config: ConfigDict,
    model_config: GPTConfig,
    device: Device,
    compiled: CompiledStep,
    estimate_at: Callable[[int], Memory],
) -> int:
    """Returns the largest batch size whose compiled step fits without XLA's rematerialization.

    The estimate proposes a batch size; each compilation corrects the estimate.
    """
    step = memory.batch_step(config.model, device.count)
    batch_size, fitting, too_large, ratio = config.train.batch_size, 0, sys.maxsize, 1.0
    for _ in range(_MAX_COMPILATIONS):
        if compiled.n_rematerialized or compiled.total > device.budget_bytes:
            too_large = min(too_large, batch_size)
        else:
            fitting = max(fitting, batch_size)
        if not compiled.n_rematerialized:  # rematerialization makes a step need less
            ratio = compiled.total / estimate_at(batch_size).total
        scaled_budget = device.budget_bytes / ratio
        proposed = memory.largest_batch(lambda b: estimate_at(b).total <= scaled_budget, step)  # noqa: B023
        if proposed >= too_large:  # the estimate is too low: bisect
            proposed = (fitting + too_large) // (2 * step) * step
        if proposed <= fitting:
            break
        batch_size = proposed
        resized = memory.with_batch_size(config, batch_size)
        compiled = compiler.compile_step(resized, model_config, device)
    return fitting


def measured_tokens_per_sec(workdir: Path) -> float | None:
    """Returns the last throughput in the metrics of a run; None if there is none."""
    name = "perf/tokens_per_sec"
    lines, _ = read_metrics(workdir)
    return next((line[name] for line in reversed(lines) if name in line), None)
