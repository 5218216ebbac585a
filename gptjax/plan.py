"""What a run will be, before it starts: parameters, tokens, passes, FLOPs, time; and warnings."""

import dataclasses

import jax
from ml_collections import ConfigDict

from data_pipeline.token_store import TokenStore
from gptjax import model
from gptjax.metrics import format_seconds, peak_flops
from gptjax.model import GPTConfig

_ASSUMED_MFU = 0.4  # for the estimate of time only: what a well-tuned step of this size may reach


@dataclasses.dataclass(frozen=True)
class Plan:
    """The size of a run; every figure follows from the configuration and the store."""

    n_params: int
    n_params_non_embedding: int
    train_tokens: int  # in the store, BOS included
    val_tokens: int
    tokens_per_step: int
    tokens: int  # over the whole run
    passes: float  # tokens / train_tokens
    flops_per_token: int
    device_kind: str
    n_devices: int
    compute_dtype: str
    peak_flops: float | None  # of one device, None where it is not known
    max_iters: int
    max_passes: float


def make_plan(config: ConfigDict, gpt: GPTConfig, store: TokenStore) -> Plan:
    """Returns the plan of a run; allocates nothing on the device."""
    train = config.train
    n_params, n_params_non_embedding = model.count_params(gpt)
    tokens_per_step = train.batch_size * train.gradient_accumulation_steps * gpt.block_size
    train_tokens = store.split("train").n_tokens
    tokens = tokens_per_step * train.max_iters
    device = jax.devices()[0]
    return Plan(
        n_params=n_params,
        n_params_non_embedding=n_params_non_embedding,
        train_tokens=train_tokens,
        val_tokens=store.split("val").n_tokens,
        tokens_per_step=tokens_per_step,
        tokens=tokens,
        passes=tokens / train_tokens,
        flops_per_token=model.flops_per_token(gpt),
        device_kind=device.device_kind,
        n_devices=jax.device_count(),
        compute_dtype=gpt.compute_dtype,
        peak_flops=peak_flops(device.device_kind),
        max_iters=train.max_iters,
        max_passes=train.max_passes,
    )


def describe(plan: Plan) -> str:
    """Returns the summary that is shown before step 0, warnings last."""
    rows = [
        (
            "parameters",
            f"{plan.n_params:,} ({plan.n_params_non_embedding:,} without embeddings)",
        ),
        ("store", f"{plan.train_tokens:,} tokens to train on, {plan.val_tokens:,} for validation"),
        ("a step", f"{plan.tokens_per_step:,} tokens"),
        (
            "the run",
            f"{plan.max_iters:,} steps, {plan.tokens:,} tokens: "
            f"{plan.passes:.1f} passes over the data, "
            f"{plan.tokens / plan.n_params:.1f} tokens a parameter",
        ),
        (
            "compute",
            f"{plan.flops_per_token / 1e6:,.1f} MFLOPs a token, "
            f"{plan.tokens * plan.flops_per_token:.2e} FLOPs in all, in {plan.compute_dtype}",
        ),
        ("device", f"{plan.n_devices} x {plan.device_kind}, {_time_estimate(plan)}"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {text}" for name, text in rows]
    return "\n".join(["Plan:", *lines, *(f"  WARNING: {w}" for w in warnings(plan))])


def _time_estimate(plan: Plan) -> str:
    if plan.peak_flops is None:
        return "peak FLOP/s not known: no estimate of time"
    seconds = plan.tokens * plan.flops_per_token / (plan.peak_flops * plan.n_devices)
    return (
        f"{plan.peak_flops / 1e12:.1f} TFLOP/s peak each: at least {format_seconds(seconds)}; "
        f"{format_seconds(seconds / _ASSUMED_MFU)} if {_ASSUMED_MFU:.0%} of it is reached (assumed)"
    )


def warnings(plan: Plan) -> list[str]:
    """Returns what the owner of the run should know before it takes days."""
    found = []
    if plan.passes > plan.max_passes:
        steps = int(plan.max_passes * plan.train_tokens / plan.tokens_per_step)
        found.append(
            f"this run reads its {plan.train_tokens:,} tokens {plan.passes:.0f} times. Repeated "
            f"data is worth nearly as much as new data for about 4 passes and ever less after "
            f"(Muennighoff et al. 2023). {max(steps, 1):,} steps (train.max_iters and "
            f"optim.lr_decay_iters) would be {plan.max_passes:g} passes, where this warning begins "
            f"(train.max_passes)."
        )
    if plan.val_tokens < 100_000:
        found.append(
            f"the validation split has {plan.val_tokens:,} tokens only, so its loss is noisy: "
            f"raise data.val_fraction."
        )
    return found
