"""Which size of model to train, and for how many steps, in the days that there are."""

import copy
import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from configs.errors import UserError
from gptjax.model.config import GPTConfig
from gptjax.model.flops import count_params, flops_per_token
from gptjax.plan import memory, planner, scaling_law
from gptjax.plan.devices import Target
from gptjax.plan.planner import Data, Plan

ASSUMED_MFU = 0.4  # share of the peak that steps of this size reach, where nothing was measured

_MAX_LAYERS = 48
_WIDTH_PER_LAYER = 64  # GPT-2's shape; the loss hardly depends on it (Kaplan et al. 2020, figure 5)
_SHOWN = 3  # sizes to either side of the best


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A model of one size, trained as long as there is time."""

    plan: Plan  # its `config` has all that is suggested
    loss: float  # by the scaling law: it ranks, it does not foretell


def sustained_flops(config: ConfigDict, target: Target, tflops: float | None) -> tuple[float, str]:
    """Returns (model FLOPs a second, where that is from): told, measured or assumed, in this order.

    Args:
        config: its workdir may hold a run of this machine.
        target: where the run is to be.
        tflops: what the user has measured, model TFLOP/s of all devices; None if nothing.

    Raises:
        UserError: nothing is known.
    """
    if tflops is not None:
        if not tflops > 0:
            raise UserError(f"--tflops={tflops}: must be positive.")
        return tflops * 1e12, "by --tflops"
    if target.is_local and (rate := planner.measured(Path(config.workdir))) is not None:
        model_config = GPTConfig.from_config(config, config.tokenizer.vocab_size)
        return rate * flops_per_token(model_config), f"measured by {config.workdir}"
    if target.peak_flops is None:
        raise UserError(
            f"how fast {target.device_kind} trains is not known: give --tflops (of a run of any "
            f"size here, perf/tokens_per_sec times its FLOPs a token / 1e12), or the --config of a "
            f"run that has logged some steps in its workdir."
        )
    peak = target.n_devices * target.peak_flops
    return ASSUMED_MFU * peak, f"assumed, {ASSUMED_MFU:.0%} of the peak"


def suggest(
    config: ConfigDict, target: Target, data: Data, *, days: float, flops_per_sec: float
) -> tuple[list[Suggestion], int]:
    """Returns sizes around the best that fits, smallest first, and the place of the best.

    The kind of model, the width of its heads and the tokens of a step stay as they are in `config`.

    Args:
        config: a validated configuration.
        target: where the run is to be.
        data: what there is to train on; must be known.
        days: of training, evaluations and saves not counted.
        flops_per_sec: model FLOPs a second of all devices, whatever the size.

    Raises:
        UserError: the data is not known, or nothing fits into memory or time.
    """
    if data.train_tokens is None:
        raise UserError(f"a size can only be suggested for data that is known: {data.origin}.")
    if not days > 0:
        raise UserError(f"--days={days}: must be positive.")
    vocab_size = config.tokenizer.vocab_size
    sized = []
    for shape in _shapes(config):
        model_config = GPTConfig.from_config(planner.on_target(shape, target), vocab_size)
        n_params, _ = count_params(model_config)
        tokens = days * 86400 * flops_per_sec / flops_per_token(model_config)
        shape.train.max_iters = int(tokens / _tokens_per_step(shape))
        if shape.train.max_iters > 0:
            passes = tokens / data.train_tokens
            sized.append((scaling_law.loss(n_params, data.train_tokens, passes), shape))
    found: dict[int, Suggestion | None] = {}

    def fitted(i: int) -> Suggestion | None:
        if i not in found:
            found[i] = _fit(sized[i], target, data, vocab_size)
        return found[i]

    by_loss = sorted(range(len(sized)), key=lambda i: sized[i][0])
    best = next((i for i in by_loss if fitted(i)), None)
    if best is None:
        raise UserError(
            f"no size fits into {days:g} days and the memory of {target.device_kind}: "
            f"more days, model.remat=full, or model.loss_chunk=2048."
        )
    near = range(max(best - _SHOWN, 0), min(best + _SHOWN + 1, len(sized)))
    shown = {i: s for i in near if (s := fitted(i)) is not None}
    return list(shown.values()), list(shown).index(best)


def describe(suggestions: list[Suggestion], best: int, *, days: float, speed: str) -> str:
    """Returns the suggestions as a table, and the flags that make the best of them.

    Args:
        suggestions: from `suggest`.
        best: from `suggest`.
        days: from `suggest`.
        speed: model FLOPs a second and where they are from, in words.
    """
    columns = ("", "n_layer x n_embd", "parameters", "tokens", "passes", "rows", "memory", "loss")
    rows = [columns]
    for i, (plan, loss) in enumerate((s.plan, s.loss) for s in suggestions):
        train = plan.config.train
        rows.append(
            (
                "->" if i == best else "",
                f"{plan.model_config.n_layer} x {plan.model_config.n_embd}",
                f"{plan.n_params / 1e6:,.1f}M",
                f"{plan.tokens / 1e9:,.3g}e9",
                f"{plan.passes:.1f}",
                f"{train.batch_size} x {train.gradient_accumulation_steps}",
                f"{plan.peak_bytes / 2**30:.2f} GiB",
                f"{loss:.3f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    chosen = suggestions[best].plan
    flags = "\n".join(f"  --config.{key}={value}" for key, value in _flags(chosen.config).items())
    return "\n".join(
        [
            f"Sizes for {days:g} days on {chosen.target.n_devices} x {chosen.target.device_kind} "
            f"at {speed}:",
            *table,
            "The loss is that of a law fitted on other data and models (Muennighoff et al. 2023): "
            "it ranks sizes.",
            "Memory is estimated; rows are batch_size x gradient_accumulation_steps. For the best:",
            flags,
        ]
    )


def _tokens_per_step(config: ConfigDict) -> int:
    train = config.train
    return train.batch_size * train.gradient_accumulation_steps * config.model.block_size


def _shapes(config: ConfigDict) -> list[ConfigDict]:
    """Returns `config` at every depth, as wide as goes with it, smallest first."""
    settings = config.model
    head_dim = settings.n_embd // settings.n_head
    group = settings.n_head // settings.n_kv_head if settings.n_kv_head else 1
    found = []
    for n_layer in range(2, _MAX_LAYERS + 1):
        shape = copy.deepcopy(config)
        n_groups = max(round(_WIDTH_PER_LAYER * n_layer / (head_dim * group)), 1)
        shape.model.n_layer, shape.model.n_head = n_layer, n_groups * group
        shape.model.n_embd = n_groups * group * head_dim
        if settings.n_kv_head:
            shape.model.n_kv_head = n_groups
        if settings.mlp_dim:
            ratio = settings.mlp_dim / settings.n_embd
            shape.model.mlp_dim = round(ratio * shape.model.n_embd)
        found.append(shape)
    return found


def _fit(
    sized: tuple[float, ConfigDict], target: Target, data: Data, vocab_size: int
) -> Suggestion | None:
    """Cuts the rows of a step into micro-steps that fit; None if not even the smallest does."""
    loss, config = sized
    rows = config.train.batch_size * config.train.gradient_accumulation_steps
    plan = planner.make_plan(config, target, data, vocab_size=vocab_size)
    step = memory.batch_step(config, target.n_devices)
    largest = int(plan.largest_batch / (1 + memory.TOLERANCE))
    batch_sizes = [b for b in range(step, min(largest, rows) + 1, step) if rows % b == 0]
    if not batch_sizes:
        return None
    config.train.batch_size = batch_sizes[-1]
    config.train.gradient_accumulation_steps = rows // batch_sizes[-1]
    optim, max_iters = config.optim, config.train.max_iters
    optim.lr_decay_iters = max_iters
    optim.warmup_iters = min(optim.warmup_iters, max_iters // 10)
    optim.wsd_decay_iters = min(optim.wsd_decay_iters, max_iters // 5)
    return Suggestion(planner.make_plan(config, target, data, vocab_size=vocab_size), loss)


def _flags(config: ConfigDict) -> dict[str, int]:
    settings, optim, train = config.model, config.optim, config.train
    fall = "lr_decay_iters" if optim.schedule == "cosine" else "wsd_decay_iters"
    sizes = ["n_layer", "n_head", "n_embd"]
    sizes += [name for name in ("n_kv_head", "mlp_dim") if settings[name]]
    return {f"model.{name}": settings[name] for name in sizes} | {
        "train.batch_size": train.batch_size,
        "train.gradient_accumulation_steps": train.gradient_accumulation_steps,
        "train.max_iters": train.max_iters,
        "optim.warmup_iters": optim.warmup_iters,
        f"optim.{fall}": optim[fall],
    }
