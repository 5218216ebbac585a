"""The figures of a run before it starts: size, data, compute, memory, time on a device."""

import copy
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs import base
from configs.errors import DataError
from configs.mixture import Mixture, declared
from configs.rtx4070 import EXPECTED_TOKENS
from data_pipeline.locate import locate
from data_pipeline.mixed_stores import shared_tokenizer, source_configs
from data_pipeline.subset import schedule, training_groups
from data_pipeline.token_store import Stores, TokenStore
from gptjax.common.workdir import read_metrics
from gptjax.model import GPTConfig, attention, count_params, flops_per_token
from gptjax.plan import compile_step as compiler
from gptjax.plan import exchange, memory, step_cost
from gptjax.plan.cards import CARDS, Link
from gptjax.plan.collectives import Collective
from gptjax.plan.compile_step import CompiledStep
from gptjax.plan.devices import Device
from gptjax.plan.memory import Memory
from gptjax.plan.step_cost import StepCost

# Bytes per token of SentencePiece BPE by log2 of its pieces: up to 8,192 measured on the bundled
# shard, above that GPT-2's 50,257 pieces on English web text.
_LOG2_PIECES, _BYTES_PER_TOKEN = (9, 11, 13, 15, 16), (1.9, 3.1, 4.1, 4.5, 4.65)
_MAX_COMPILATIONS = 6  # of the search for the largest batch; usually one or two


@dataclasses.dataclass(frozen=True)
class Data:
    """Tokens of one or all sources, BOS included; None if unknown."""

    train_tokens: int | None
    val_tokens: int | None
    origin: str  # of the figures; or why they are unknown
    sources: Mapping[str, "SourceData"] = dataclasses.field(default_factory=dict)  # of a mixture

    @property
    def parts(self) -> dict[str, "SourceData"]:
        """The sources by their names; a single one has none."""
        return {**self.sources} or {"": SourceData(1.0, self)}

    @property
    def pass_tokens(self) -> float | None:
        """Tokens of training until one source was read whole; None if unknown."""
        if self.train_tokens is None:
            return None
        return min(part.pass_tokens for part in self.parts.values())


class SourceData(NamedTuple):
    """A source's part in the run."""

    share: float  # of the run's tokens
    data: Data

    @property
    def pass_tokens(self) -> float:
        """Tokens of training until this source was read whole."""
        assert self.data.train_tokens is not None
        return self.data.train_tokens / self.share if self.share else math.inf


@dataclasses.dataclass(frozen=True)
class Plan:
    """The size of a run, which follows from the configuration, the data and the device."""

    config: ConfigDict  # with `auto` resolved for the device
    model_config: GPTConfig
    device: Device
    data: Data
    n_params: int
    n_params_non_embedding: int
    flops_per_token: int  # of the model, without recomputation
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
        flops_per_token=flops_per_token(model_config),
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
        cudnn = model.compute_dtype == "bfloat16" and width % 8 == 0 and width <= 128
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


def find_data(config: ConfigDict) -> Data:
    """Returns what is known of the data of `config` without preparing it."""
    mixture = declared(config.data)
    if mixture is None:
        return _find(config)
    try:
        tokenizer, _ = shared_tokenizer(config, mixture, download=False)
    except DataError as error:
        return Data(None, None, _unknown(error))
    configs = source_configs(config, mixture, tokenizer if tokenizer.exists() else None)
    return _mixed(config, mixture, map(_find, configs))


def _unknown(error: DataError) -> str:
    return f"not known: {str(error).partition('. ')[0]}"


def _mixed(config: ConfigDict, mixture: Mixture, sources: Iterable[Data]) -> Data:
    """Returns the data of a mixture, from that of each of its sources."""
    train = config.train
    n_rows = train.max_iters * train.batch_size * train.gradient_accumulation_steps
    counts = schedule(train, mixture).counts(n_rows)
    parts = [SourceData(n / n_rows, data) for n, data in zip(counts, sources, strict=True)]
    train_tokens = _total([part.data.train_tokens for part in parts])
    val_tokens = _total([part.data.val_tokens for part in parts])
    origin = "; ".join(dict.fromkeys(part.data.origin for part in parts))
    return Data(train_tokens, val_tokens, origin, dict(zip(mixture.names, parts, strict=True)))


def _total(tokens: Sequence[int | None]) -> int | None:
    known = [n for n in tokens if n is not None]
    return sum(known) if len(known) == len(tokens) else None


def _find(config: ConfigDict) -> Data:
    """Returns what is known of a single source."""
    try:
        store_path, shards = locate(config, download=False)
        if store_path.exists():
            return _stored(config, TokenStore.open(store_path))
    except DataError as error:
        if config.data.source != base.get_config().data.source:
            return Data(None, None, _unknown(error))
        origin = "expected (one FineWeb file of 2.15 GB): the source is not there yet"
        return _split(config, EXPECTED_TOKENS, origin)
    log2_pieces = math.log2(config.tokenizer.vocab_size)
    bytes_per_token = float(np.interp(log2_pieces, _LOG2_PIECES, _BYTES_PER_TOKEN))
    tokens = sum(shard.text_bytes / bytes_per_token + shard.n_documents for shard in shards)
    origin = f"estimated from the size of the text, at {bytes_per_token:.1f} bytes a token"
    return _split(config, round(tokens), f"{origin}; exact once prepared")


def stored(config: ConfigDict, stores: Stores) -> Data:
    """Returns the tokens of the stores that `config` uses."""
    data = [_stored(config, store) for store in stores.sources.values()]
    return data[0] if stores.mixture is None else _mixed(config, stores.mixture, data)


def _stored(config: ConfigDict, store: TokenStore) -> Data:
    train = training_groups(store, config.data.max_train_tokens)
    n_train = sum(group.n_tokens for group in train)
    return Data(n_train, store.manifest["splits"]["val"]["tokens"], "in the store")


def _split(config: ConfigDict, tokens: int, origin: str) -> Data:
    val_tokens = round(config.data.val_fraction * tokens)
    train_tokens = min(tokens - val_tokens, config.data.max_train_tokens or tokens)
    return Data(train_tokens, val_tokens, origin)


def measured_tokens_per_sec(workdir: Path) -> float | None:
    """Returns the last throughput in the metrics of a run; None if there is none."""
    name = "perf/tokens_per_sec"
    lines, _ = read_metrics(workdir)
    return next((line[name] for line in reversed(lines) if name in line), None)
