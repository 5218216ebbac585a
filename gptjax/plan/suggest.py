"""Which size of model to train, and for how many steps, in a given time."""

import copy
import functools
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from configs.errors import UserError
from gptjax.common.tables import plain_table
from gptjax.model import GPTConfig, count_params, flops_per_token
from gptjax.plan import memory, planner, scaling_law
from gptjax.plan.devices import Device
from gptjax.plan.exchange import ASSUMED_MFU
from gptjax.plan.planner import Plan
from gptjax.plan.run_data import Data

_MAX_LAYERS = 48
_WIDTH_PER_LAYER = 64  # GPT-2's shape; the loss hardly depends on it (Kaplan et al. 2020, figure 5)
_SHOWN = 3  # sizes to either side of the best
_TIE = 1e-3  # nats that the law cannot tell apart


class Suggestion(NamedTuple):
    """A model of one size, trained for all of the time, or for `train.max_epochs` passes."""

    plan: Plan  # its `config` is the suggested one
    loss: float  # by the scaling law: for ranking, not a prediction
    bound: str  # what ends the run: time, or passes


def sustained_flops(config: ConfigDict, device: Device, tflops: float | None) -> tuple[float, str]:
    """Returns (model FLOP/s of all devices, origin): `tflops`, else measured, else assumed.

    `tflops` is the user's figure for all devices; the measurement is that of a run in the workdir
    of `config`.

    Raises:
        UserError: none of them is available, or `tflops` is not positive.
    """
    if tflops is not None:
        if not tflops > 0:
            raise UserError(f"--tflops={tflops}: must be positive.")
        return tflops * 1e12, "by --tflops"
    if device.is_local and (rate := planner.measured_tokens_per_sec(Path(config.workdir))):
        model_config = GPTConfig.from_config(config, config.tokenizer.vocab_size)
        return rate * flops_per_token(model_config), f"measured by {config.workdir}"
    if device.peak_flops is None:
        raise UserError(
            f"the training speed of {device.kind} is not known: give --tflops (of a run of any "
            f"size here, perf/tokens_per_sec times its FLOPs a token / 1e12), or the --config of a "
            f"run that has logged some steps in its workdir."
        )
    rate = ASSUMED_MFU * device.count * device.peak_flops
    return rate, f"assumed, {ASSUMED_MFU:.0%} of the peak"


def suggest(
    config: ConfigDict, device: Device, data: Data, *, days: float, flops_per_sec: float
) -> tuple[list[Suggestion], int]:
    """Returns sizes around the best one that fits, smallest first, and the index of the best.

    The best is the smallest of those whose loss is the lowest but for _TIE. A run ends with the
    time, or after `train.max_epochs` passes over the data. The kind of model, the width of its
    heads and the tokens of a step stay as they are in `config`. `days` are of training alone,
    `flops_per_sec` are model FLOP/s of all devices at any size.

    Raises:
        UserError: the data is not known, or nothing fits into memory, time or passes.
    """
    if data.train_tokens is None or data.pass_tokens is None:
        raise UserError(f"a size can only be suggested for data that is known: {data.origin}.")
    if not days > 0:
        raise UserError(f"--days={days}: must be positive.")
    train, sized = config.train, []
    step_tokens = train.batch_size * train.gradient_accumulation_steps * config.model.block_size
    most_tokens = train.max_epochs * data.pass_tokens
    if step_tokens > most_tokens:
        raise UserError(
            f"a step of {step_tokens:,} tokens is more than {train.max_epochs:g} passes "
            f"(train.max_epochs) over the {data.train_tokens:,} tokens of the data: lower "
            f"train.gradient_accumulation_steps or train.batch_size."
        )
    for shape in _shapes(config):
        model_config = GPTConfig.from_config(
            planner.resolve_auto(shape, device), config.tokenizer.vocab_size
        )
        n_params, _ = count_params(model_config)
        in_time = days * 86400 * flops_per_sec / flops_per_token(model_config)
        tokens = min(in_time, most_tokens)
        shape.train.max_iters = int(tokens / step_tokens)
        if shape.train.max_iters > 0:
            passes = tokens / data.train_tokens
            loss = scaling_law.loss(n_params, data.train_tokens, passes)
            sized.append((loss, "time" if in_time <= most_tokens else "passes", shape))

    @functools.cache
    def fitted(i: int) -> Suggestion | None:
        return _fit(*sized[i], device, data)

    by_loss = sorted(range(len(sized)), key=lambda i: sized[i][0])
    lowest = next((i for i in by_loss if fitted(i)), None)
    if lowest is None:
        raise UserError(
            f"no size fits into {days:g} days and the memory of {device.kind}: "
            f"more days, model.remat=full, or model.loss_chunk=2048."
        )
    most = sized[lowest][0] + _TIE
    best = next(i for i, (loss, *_) in enumerate(sized) if loss <= most and fitted(i))
    near = range(max(best - _SHOWN, 0), min(best + _SHOWN + 1, len(sized)))
    shown = {i: s for i in near if (s := fitted(i)) is not None}
    return list(shown.values()), list(shown).index(best)


def describe(suggestions: list[Suggestion], best: int, *, days: float, speed: str) -> str:
    """Returns a table of suggestions, and the flags for the best one; `speed` is text."""
    rows = [
        (
            "",
            "n_layer x n_embd",
            "parameters",
            "tokens",
            "passes",
            "rows",
            "memory",
            "bound",
            "loss",
        )
    ]
    for i, (plan, loss, bound) in enumerate(suggestions):
        train = plan.config.train
        row = (
            "->" if i == best else "",
            f"{plan.model_config.n_layer} x {plan.model_config.n_embd}",
            f"{plan.n_params / 1e6:,.1f}M",
            f"{plan.tokens / 1e9:,.3g}e9",
            f"{plan.passes:.1f}",
            f"{train.batch_size} x {train.gradient_accumulation_steps}",
            f"{plan.peak_bytes / 2**30:.2f} GiB",
            bound,
            f"{loss:.3f}",
        )
        rows.append(row)
    chosen = suggestions[best].plan
    return "\n".join(
        [
            f"Sizes for {days:g} days on {chosen.device.count} x {chosen.device.kind} at {speed}:",
            plain_table(rows),
            "The loss is that of a law fitted on other data and models (Muennighoff et al. 2023): "
            f"it ranks sizes. Of those within {_TIE:g} of the lowest, the smallest is taken.",
            _bound(suggestions[best], days),
            "Memory is estimated; rows are batch_size x gradient_accumulation_steps. For the best:",
            *(f"  --config.{key}={value}" for key, value in _flags(chosen.config).items()),
        ]
    )


def _bound(suggestion: Suggestion, days: float) -> str:
    train = suggestion.plan.config.train
    if suggestion.bound == "time":
        return f"The bound is time, {days:g} days: fewer than {train.max_epochs:g} passes."
    return (
        f"The bound is passes, {train.max_epochs:g} over the data (train.max_epochs), in less than "
        f"{days:g} days: more data would be worth more than more steps."
    )


def _shapes(config: ConfigDict) -> list[ConfigDict]:
    """Returns `config` at every depth, with the width for that depth, smallest first."""
    model = config.model
    head_dim = model.n_embd // model.n_head
    group = model.n_head // model.n_kv_head if model.n_kv_head else 1
    shapes = []
    for n_layer in range(2, _MAX_LAYERS + 1):
        shape = copy.deepcopy(config)
        n_groups = max(round(_WIDTH_PER_LAYER * n_layer / (head_dim * group)), 1)
        shape.model.n_layer, shape.model.n_head = n_layer, n_groups * group
        shape.model.n_embd = n_groups * group * head_dim
        if model.scan_unroll == model.n_layer:  # all layers
            shape.model.scan_unroll = n_layer
        if model.n_kv_head:
            shape.model.n_kv_head = n_groups
        if model.mlp_dim:
            shape.model.mlp_dim = round(model.mlp_dim / model.n_embd * shape.model.n_embd)
        shapes.append(shape)
    return shapes


def _fit(
    loss: float, bound: str, config: ConfigDict, device: Device, data: Data
) -> Suggestion | None:
    """Splits the rows of a step into micro-steps that fit; None if not even one row does."""
    train, optim = config.train, config.optim
    rows = train.batch_size * train.gradient_accumulation_steps
    step = memory.batch_step(config.model, device.count)
    plan = planner.make_plan(config, device, data)
    largest = int(plan.largest_batch / (1 + memory.TOLERANCE))
    batch_sizes = [b for b in range(step, min(largest, rows) + 1, step) if rows % b == 0]
    if not batch_sizes:
        return None
    train.batch_size = batch_sizes[-1]
    train.gradient_accumulation_steps = rows // batch_sizes[-1]
    optim.lr_decay_iters = train.max_iters
    optim.warmup_iters = min(optim.warmup_iters, train.max_iters // 10)
    optim.wsd_decay_iters = min(optim.wsd_decay_iters, train.max_iters // 5)
    return Suggestion(planner.make_plan(config, device, data), loss, bound)


def _flags(config: ConfigDict) -> dict[str, int]:
    model, optim, train = config.model, config.optim, config.train
    decay = "lr_decay_iters" if optim.schedule == "cosine" else "wsd_decay_iters"
    sizes = ["n_layer", "n_head", "n_embd"]
    sizes += [name for name in ("n_kv_head", "mlp_dim") if model[name]]
    sizes += ["scan_unroll"] if model.scan_unroll == model.n_layer else []
    return {f"model.{name}": model[name] for name in sizes} | {
        "train.batch_size": train.batch_size,
        "train.gradient_accumulation_steps": train.gradient_accumulation_steps,
        "train.max_iters": train.max_iters,
        "optim.warmup_iters": optim.warmup_iters,
        f"optim.{decay}": optim[decay],
    }
