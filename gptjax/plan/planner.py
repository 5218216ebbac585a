"""The figures of a run before it starts: size, data, compute, memory, time on a target."""

import copy
import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs.errors import DataError
from data_pipeline.prepare import locate
from data_pipeline.subset import training_documents
from data_pipeline.token_store import TokenStore
from gptjax.common.workdir import read_metrics
from gptjax.model import attention
from gptjax.model.config import GPTConfig
from gptjax.model.flops import count_params, flops_per_token
from gptjax.plan import compile_step as compiler
from gptjax.plan import memory, step_cost
from gptjax.plan.compile_step import CompiledStep
from gptjax.plan.devices import Target
from gptjax.plan.memory import Memory
from gptjax.plan.step_cost import StepCost

# Bytes a token of SentencePiece BPE by log2 of its pieces: up to 8,192 measured on the bundled
# shard, above it what GPT-2's 50,257 pieces make of English web text.
_LOG2_PIECES, _BYTES_PER_TOKEN = (9, 11, 13, 15, 16), (1.9, 3.1, 4.1, 4.5, 4.65)
_MAX_COMPILATIONS = 6  # of the search for the largest batch; one or two, as a rule


@dataclasses.dataclass(frozen=True)
class Data:
    """Tokens of the source, BOS included; None where they are not known."""

    train_tokens: int | None
    val_tokens: int | None
    origin: str  # how they are known


@dataclasses.dataclass(frozen=True)
class Plan:
    """The size of a run; every figure follows from the configuration, the data and the target."""

    config: ConfigDict  # with everything that was `auto` as it is on the target
    model_config: GPTConfig
    target: Target
    data: Data
    n_params: int
    n_params_non_embedding: int
    flops_per_token: int  # of the model; what is computed again is not counted
    cost: StepCost  # of one optimizer step, what is computed again included
    estimate: Memory
    compiled: CompiledStep | None  # None: memory is estimated
    largest_batch: int  # rows of a micro-step that fit
    measured_tokens_per_sec: float | None  # by this very workdir so far, on this machine

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
        """How often the run reads its training split."""
        return self.tokens / self.data.train_tokens if self.data.train_tokens else None

    @property
    def peak_bytes(self) -> int:
        """Memory of one device at the peak of a step."""
        return self.estimate.total if self.compiled is None else self.compiled.total

    @property
    def fits(self) -> bool:
        """Whether a step fits into the budget of the target."""
        return self.peak_bytes <= self.target.budget_bytes

    @property
    def step_seconds(self) -> tuple[float, float, float] | None:
        """Roofline of an optimizer step: all arithmetic, all traffic, each operation at its bound.

        None where peak or bandwidth are not known.
        """
        peak, bandwidth = self.target.peak_flops, self.target.bandwidth
        if peak is None or bandwidth is None:
            return None
        n = self.target.n_devices
        peak, bandwidth = n * peak, n * bandwidth
        return (
            self.cost.flops / peak,
            self.cost.bytes / bandwidth,
            self.cost.seconds(peak, bandwidth),
        )

    def seconds_at(self, mfu: float) -> float | None:
        """Returns the duration of the run at a share of the peak; None where that is not known."""
        if self.target.peak_flops is None:
            return None
        flops = self.tokens * self.flops_per_token
        return flops / (mfu * self.target.peak_flops * self.target.n_devices)


def make_plan(
    config: ConfigDict, target: Target, data: Data, *, vocab_size: int, compile_step: bool = False
) -> Plan:
    """Returns the plan of a run; allocates nothing on a device.

    Args:
        config: a validated configuration.
        target: where it is to run.
        data: what it trains on.
        vocab_size: of its tokenizer.
        compile_step: read memory off the compiled step instead of estimating it.

    Raises:
        UserError: the step cannot be compiled for the target.
    """
    config = on_target(config, target)
    model_config = GPTConfig.from_config(config, vocab_size)
    n_params, n_params_non_embedding = count_params(model_config)
    cost = step_cost.measure(config, model_config)
    estimate_at = _estimator(config, model_config, cost, target.n_devices)
    compiled = compiler.compile_step(config, model_config, target) if compile_step else None
    batch_size, step = config.train.batch_size, memory.batch_step(config, target.n_devices)
    largest = memory.largest_batch(lambda b: estimate_at(b).total <= target.budget_bytes, step)
    if compiled is not None:
        largest = _largest_compiled(config, model_config, target, compiled, estimate_at)
    return Plan(
        config=config,
        model_config=model_config,
        target=target,
        data=data,
        n_params=n_params,
        n_params_non_embedding=n_params_non_embedding,
        flops_per_token=flops_per_token(model_config),
        cost=cost,
        estimate=estimate_at(batch_size),
        compiled=compiled,
        largest_batch=largest,
        measured_tokens_per_sec=measured(Path(config.workdir)) if target.is_local else None,
    )


def on_target(config: ConfigDict, target: Target) -> ConfigDict:
    """Returns a copy of `config` in which `auto` is what it becomes on a card that is not here."""
    config = copy.deepcopy(config)
    if target.is_local:
        return config
    settings = config.model
    if settings.compute_dtype == "auto":
        settings.compute_dtype = "bfloat16"
    if settings.attention == "auto":
        width = settings.n_embd // settings.n_head
        cudnn = settings.compute_dtype == "bfloat16" and width % 8 == 0 and width <= 128
        names = attention.candidates(config.data.document_mask)
        settings.attention = next(name for name in names if name != "cudnn" or cudnn)
    return config


def _estimator(
    config: ConfigDict, model_config: GPTConfig, cost: StepCost, n_devices: int
) -> Callable[[int], Memory]:
    """Returns batch size -> Memory; what layers keep grows with the batch by the same each row."""
    rows = config.train.batch_size
    kept_of_twice = step_cost.measure(
        memory.with_batch_size(config, 2 * rows), model_config
    ).kept_bytes
    per_row = (kept_of_twice - cost.kept_bytes) / rows

    def estimate_at(batch_size: int) -> Memory:
        kept = round(cost.kept_bytes + (batch_size - rows) * per_row)
        return memory.estimate(
            memory.with_batch_size(config, batch_size),
            model_config,
            dataclasses.replace(cost, kept_bytes=kept),
            n_devices,
        )

    return estimate_at


def _largest_compiled(
    config: ConfigDict,
    model_config: GPTConfig,
    target: Target,
    compiled: CompiledStep,
    estimate_at: Callable[[int], Memory],
) -> int:
    """Returns the largest batch size whose compiled step fits and recomputes nothing unasked.

    The estimate tells where to look; each compilation mends it.
    """
    step = memory.batch_step(config, target.n_devices)
    batch_size, fitting, too_large, ratio = config.train.batch_size, 0, sys.maxsize, 1.0
    for _ in range(_MAX_COMPILATIONS):
        if compiled.n_rematerialized or compiled.total > target.budget_bytes:
            too_large = min(too_large, batch_size)
        else:
            fitting = max(fitting, batch_size)
        if not compiled.n_rematerialized:  # otherwise the step was made to need less
            ratio = compiled.total / estimate_at(batch_size).total
        scaled_budget = target.budget_bytes / ratio
        promising = memory.largest_batch(lambda b: estimate_at(b).total <= scaled_budget, step)  # noqa: B023
        if promising >= too_large:  # the estimate has misled: halve what is left
            promising = (fitting + too_large) // (2 * step) * step
        if promising <= fitting:
            break
        batch_size = promising
        resized = memory.with_batch_size(config, batch_size)
        compiled = compiler.compile_step(resized, model_config, target)
    return fitting


def find_data(config: ConfigDict) -> Data:
    """Returns what is known of the data of `config` without preparing it."""
    expected = config.claims.expected_tokens
    try:
        store_path, shards = locate(config)
        if store_path.exists():
            return stored(config, TokenStore.open(store_path))
    except DataError as error:
        if expected is None:
            return Data(None, None, f"not known: {str(error).partition('. ')[0]}")
        origin = "expected (claims.expected_tokens): the source is not there yet"
        return _split(config, expected, origin)
    log2_pieces = math.log2(config.tokenizer.vocab_size)
    bytes_per_token = float(np.interp(log2_pieces, _LOG2_PIECES, _BYTES_PER_TOKEN))
    tokens = sum(sum(shard.text_bytes) / bytes_per_token + shard.n_documents for shard in shards)
    origin = (
        f"estimated from the footer, at {bytes_per_token:.1f} bytes a token; exact once prepared"
    )
    return _split(config, round(tokens), origin)


def stored(config: ConfigDict, store: TokenStore) -> Data:
    """Returns the tokens of a store that `config` uses."""
    train = training_documents(store, config.data.max_train_tokens)
    return Data(train.n_tokens, store.split("val").n_tokens, "in the store")


def _split(config: ConfigDict, tokens: int, origin: str) -> Data:
    val_tokens = round(config.data.val_fraction * tokens)
    train_tokens = min(tokens - val_tokens, config.data.max_train_tokens or tokens)
    return Data(train_tokens, val_tokens, origin)


def measured(workdir: Path) -> float | None:
    """Returns the tokens per second of the run's last line of metrics, None without one."""
    name = "perf/tokens_per_sec"
    lines, _ = read_metrics(workdir)
    return next((line[name] for line in reversed(lines) if name in line), None)
