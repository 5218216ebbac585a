"""The text of a plan: summary, claims beside actual figures, warnings with remedies."""

from collections import Counter
from collections.abc import Iterable

from configs.rtx4070 import claims_of
from data_pipeline.progress import format_seconds
from gptjax.plan import exchange, preparation
from gptjax.plan.collectives import Collective, sent
from gptjax.plan.hlo_traffic import largest
from gptjax.plan.planner import Plan
from gptjax.plan.run_data import SourceData
from gptjax.plan.scaling_law import effective_tokens

_GIB = 2**30
_ASSUMED_MFUS = (0.3, 0.4, 0.5)
_MIN_SPARE_BYTES = 0.5 * _GIB  # drivers and libraries differ by a few hundred MB
_LONG_RUN_DAYS = 10
_SHOWN_TRANSFERS = 5


def describe(plan: Plan, *, full: bool) -> str:
    """Returns the summary, warnings last; `full` adds roofline, parts of memory, claims."""
    device, train, model_config = plan.device, plan.config.train, plan.model_config
    by_name = "" if device.is_local else " (by name: nothing was run there)"
    data = plan.data.origin
    if plan.data.train_tokens is not None:
        data = (
            f"{plan.data.train_tokens:,} tokens to train on, {plan.data.val_tokens:,} for "
            f"validation, {data}"
        )
    passes = "passes not known" if plan.passes is None else f"{plan.passes:.1f} passes"
    over = "the most read source" if plan.data.sources else "the data"
    recomputing = plan.cost.flops / (plan.tokens_per_step * plan.flops_per_token)
    rows = [
        ("parameters", f"{plan.n_params:,} ({plan.n_params_non_embedding:,} without embeddings)"),
        ("data", data),
        *(("", _source(plan, name, part)) for name, part in plan.data.sources.items()),
        *[("preparing", text) for text in preparation.describe(plan.config, plan.data.unprepared)],
        (
            "a step",
            f"{plan.tokens_per_step:,} tokens: {train.gradient_accumulation_steps} micro-steps of "
            f"{train.batch_size} x {model_config.block_size:,}",
        ),
        (
            "the run",
            f"{train.max_iters:,} steps, {plan.tokens:,} tokens: {passes} over {over}, "
            f"{plan.tokens / plan.n_params:.1f} tokens a parameter",
        ),
        *([("worth", _worth(plan))] if full and plan.passes else []),
        (
            "compute",
            f"{plan.flops_per_token / 1e6:,.1f} MFLOPs a token, "
            f"{plan.tokens * plan.flops_per_token:.2e} FLOPs in all, "
            f"in {model_config.compute_dtype}; attention {model_config.attention}, "
            f"remat {model_config.remat}{', deterministic' * plan.config.deterministic}: "
            f"a step does {recomputing:.2f} times that",
        ),
        ("memory", _memory(plan)),
        *([("", _parts_of_memory(plan)), ("roofline", _roofline(plan))] if full else []),
        *(_largest_transfers(plan) if full else []),
        *(_exchange(plan) if full and device.count > 1 else []),
        ("time", _time(plan)),
    ]
    in_hosts = f" in {device.hosts} hosts" if device.hosts > 1 else ""
    lines = [f"Plan for {device.count} x {device.kind}{in_hosts}{by_name}:", *_aligned(rows)]
    if full and (claims := _claims(plan)):
        lines += ["Claimed of this recipe, and computed:", *_aligned(claims)]
    return "\n".join([*lines, *(f"  WARNING: {warning}" for warning in warnings(plan))])


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {text}" for name, text in rows]


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / _GIB:.2f}"


def _source(plan: Plan, name: str, part: SourceData) -> str:
    """Returns the share of a source, its tokens, and how often the run reads them."""
    text = f"{name}: {part.share:.2%} of the tokens"
    if part.data.train_tokens is None:
        return f"{text}, of a number that is {part.data.origin}"
    return (
        f"{text}, from {part.data.train_tokens:,} ({plan.tokens / part.pass_tokens:.1f} passes); "
        f"{part.data.val_tokens:,} for validation"
    )


def _worth(plan: Plan) -> str:
    worth = sum(
        effective_tokens(part.data.train_tokens, plan.tokens / part.pass_tokens)
        for part in plan.data.parts.values()
        if part.data.train_tokens is not None
    )
    return (
        f"about {worth / 1e9:.3g}e9 tokens read once, {worth / plan.tokens:.0%} of those read "
        f"(Muennighoff et al. 2023; a trend, fitted on other data and models, and that loss can "
        f"rise again where data repeats often is not in it)"
    )


def _memory(plan: Plan) -> str:
    budget = plan.device.budget_bytes
    how = "estimated" if plan.compiled is None else f"compiled in {plan.compiled.seconds:.0f} s"
    verdict = f"{_gib(budget - plan.peak_bytes)} GiB to spare" if plan.fits else "DOES NOT FIT"
    return (
        f"{_gib(plan.peak_bytes)} GiB ({how}) of {_gib(budget)} GiB "
        f"({plan.device.budget_reason}): {verdict}; largest batch_size that fits: "
        f"{plan.largest_batch}"
    )


def _parts_of_memory(plan: Plan) -> str:
    parts, compiled = plan.estimate, plan.compiled
    teacher = " and teacher" if plan.config.train.teacher else ""
    estimated = (
        f"estimated: {_gib(parts.state)} parameters and optimizer{teacher}, "
        f"{_gib(parts.kept)} kept for the backward pass, "
        f"{_gib(parts.work)} gradients and temporaries"
    )
    if compiled is None:
        return estimated
    return (
        f"{compiled.arguments / _GIB:.3f} arguments + {compiled.outputs / _GIB:.3f} outputs + "
        f"{compiled.temporaries / _GIB:.3f} temporaries - {compiled.aliased / _GIB:.3f} aliased; "
        f"in an evaluation {_gib(compiled.evaluation)}; {estimated} ({_gib(parts.total)})"
    )


def _roofline(plan: Plan) -> str:
    device, bandwidth = plan.device, plan.device.bandwidth
    if not device.peaks:
        return f"peak {device.peak_reason}"
    text = "an optimizer step needs " + " and ".join(
        f"{seconds:.2f} s of {name} arithmetic at {device.peaks[name] / 1e12:.1f} TFLOP/s"
        for name, seconds in plan.arithmetic_seconds.items()
    )
    if plan.step_seconds is None or bandwidth is None:
        return f"{text}; memory bandwidth n/a"
    arithmetic, traffic, at_best = plan.step_seconds

    def bound(traffic: float) -> str:
        return "arithmetic" if arithmetic >= traffic else "memory traffic"

    text += (
        f", and at least {traffic:.2f} s of memory traffic at {bandwidth / 1e9:,.0f} GB/s (matmuls "
        f"and updates alone): {bound(traffic)} bounds it; {at_best:.2f} s with each matmul at its "
        f"own bound"
    )
    if plan.compiled is not None:
        compiled = plan.compiled.bytes_moved / bandwidth  # the program of one device
        text += (
            f". As compiled, {plan.compiled.bytes_moved / 1e9:,.0f} GB go through memory, less "
            f"what a cache saves: {compiled:.2f} s, so that {bound(compiled)} bounds it"
        )
    return text


def _largest_transfers(plan: Plan) -> list[tuple[str, str]]:
    """Returns rows with the largest parts of the compiled traffic, to see what could be lowered."""
    rows: list[tuple[str, str]] = []
    for t in [] if plan.compiled is None else largest(plan.compiled.transfers, _SHOWN_TRANSFERS):
        source = t.source.replace("closed_call/", "") or t.name
        size = f"{t.total / 1e9:,.1f} GB in {t.runs:,} x {t.bytes / 1e6:,.1f} MB"
        rows.append(("" if rows else "traffic", f"{size}: {source}"))
    return rows


def _exchange(plan: Plan) -> list[tuple[str, str]]:
    """Returns rows with what devices exchange, at least and as compiled, and the prediction."""
    least, params = sent(plan.exchange), 4 * plan.n_params
    rows = [
        (
            "exchange",
            f"a device sends at least {least / 1e6:,.1f} MB a step, {least / params:.3f} times the "
            f"parameters' {params / 1e6:,.1f} MB, by arithmetic: {_by_kind(plan.exchange)}",
        )
    ]
    if plan.compiled is not None:
        as_compiled = plan.compiled.collectives
        share = sent(as_compiled) / least
        text = f"as compiled {sent(as_compiled) / 1e6:,.1f} MB, {share:.3f} times the least"
        rows.append(("", f"{text}: {_by_kind(as_compiled)}"))
    if (alone := plan.efficiency(None)) is None or plan.device.link is None:
        return rows
    text = (
        f"predicted, at {exchange.ASSUMED_MFU:.0%} of the peak and {exchange.ASSUMED_SHARE:.0%} of "
        f"a link's rate, both assumed, and with no overlap: devices compute for {alone:.0%} of the "
        f"time with {plan.device.link.name} between all"
    )
    if plan.device.hosts > 1:
        text += "".join(
            f", {plan.efficiency(network):.0%} with {network.name} between hosts"
            for network in exchange.NETWORKS
        )
    return [*rows, ("scaling", text)]


def _by_kind(collectives: Iterable[Collective]) -> str:
    """Returns the bytes that one device sends by kind, dtype and size of group, most first."""
    n_bytes: Counter[str] = Counter()
    for c in collectives:
        n_bytes[f"{c.kind} {c.dtype} over {len(c.group)}"] += round(c.wire_bytes)
    return ", ".join(f"{n / 1e6:,.1f} MB {name}" for name, n in n_bytes.most_common())


def _time(plan: Plan) -> str:
    at_peak = plan.seconds_at(1.0)
    if at_peak is None:
        parts = [f"no estimate: peak FLOP/s {plan.device.peak_reason}"]
    else:
        shares = ", ".join(f"{format_seconds(at_peak / mfu)} at {mfu:.0%}" for mfu in _ASSUMED_MFUS)
        origin = f" {plan.device.peak_reason}" if plan.device.is_local else ""
        parts = [f"{format_seconds(at_peak)} at the peak{origin}; {shares} of it (assumed)"]
    if (rate := plan.measured_tokens_per_sec) is not None:
        share = f" ({at_peak * rate / plan.tokens:.1%} of the peak)" if at_peak is not None else ""
        parts.append(
            f"{format_seconds(plan.tokens / rate)} at the {rate:,.0f} tokens/s{share} that "
            f"{plan.config.workdir} measured"
        )
    return "; ".join(parts)


def _claims(plan: Plan) -> list[tuple[str, str]]:
    """Returns (claim, computed figure) pairs of the recipe; [] for any other configuration."""
    claims, data = claims_of(plan.config), plan.data
    if not claims:
        return []
    tokens, rate, days = "not known yet", "not known for this device", "not known for this device"
    if data.train_tokens is not None and data.val_tokens is not None:
        tokens = f"{(data.train_tokens + data.val_tokens) / 1e9:.2f}e9 ({data.origin})"
    if (at_peak := plan.seconds_at(1.0)) is not None:
        steps = plan.config.train.max_iters / at_peak
        rate = f"{steps:.2f} at the peak of the card, {0.4 * steps:.2f} at 40 % of it (assumed)"
        days = f"{at_peak / 86400:.1f} at the peak, {at_peak / 0.4 / 86400:.1f} at 40 % (assumed)"
    passes = "not known yet" if plan.passes is None else f"{plan.passes:.0f}"
    low, high = claims["steps_per_sec"]
    verdict = (
        f"{'yes' if plan.fits else 'no'}, {_gib(plan.peak_bytes)} of "
        f"{_gib(plan.device.budget_bytes)} GiB, with attention {plan.model_config.attention}, "
        f"remat {plan.config.model.remat}, loss_chunk {plan.config.model.loss_chunk:,}"
    )
    return [
        (f"{claims['n_params'] / 1e6:.0f}M parameters", f"{plan.n_params / 1e6:.1f}M"),
        (f"{claims['source_tokens'] / 1e9:.1f}e9 tokens of data", tokens),
        (f"{claims['passes']:g} passes over them", passes),
        (f"{low:g}-{high:g} steps a second", rate),
        (f"{claims['days']:g} days", days),
        (f"batch_size {claims['fitting_batch_size']} fits", verdict),
    ]


def warnings(plan: Plan) -> list[str]:
    """Returns what to know before a long run, with remedies."""
    train, data, optim = plan.config.train, plan.data, plan.config.optim
    cosine = optim.schedule == "cosine"
    length = "train.max_iters" + (" and optim.lr_decay_iters" if cosine else "")
    texts = []
    if not plan.fits:
        texts.append(refusal(plan))
    elif plan.device.budget_bytes - plan.peak_bytes < _MIN_SPARE_BYTES:
        texts.append(
            "less than 0.5 GiB to spare: a driver or a library that takes more can end the run. "
            f"Lower train.batch_size, or recompute more ({_remedies(plan)})."
        )
    if plan.compiled is not None and plan.compiled.n_rematerialized:
        texts.append(
            f"memory is so short that XLA recomputes {plan.compiled.n_rematerialized} instructions "
            f"of its own choice, not the cheapest. Set train.batch_size={plan.largest_batch}, or "
            f"{_remedies(plan)}."
        )
    if plan.passes is not None and plan.passes > train.max_epochs:
        assert data.pass_tokens is not None
        steps = int(train.max_epochs * data.pass_tokens / plan.tokens_per_step)
        name, most_read = min(data.parts.items(), key=lambda item: item[1].pass_tokens)
        whose = f" of {name}" if name else ""
        texts.append(
            f"this run reads its {most_read.data.train_tokens:,} tokens{whose} "
            f"{plan.passes:.0f} times. Repeated "
            f"data is worth nearly as much as new data for about 4 passes and ever less after "
            f"(Muennighoff et al. 2023). {max(steps, 1):,} steps ({length}) would be "
            f"{train.max_epochs:g} passes, where this warning begins (train.max_epochs)."
        )
    for name, part in data.parts.items():
        if part.data.val_tokens is not None and part.data.val_tokens < 100_000:
            texts.append(
                f"the validation split{f' of {name}' if name else ''} has only "
                f"{part.data.val_tokens:,} tokens, so its loss is noisy: raise data.val_fraction."
            )
    if (seconds := plan.seconds_at(0.4) or 0.0) > _LONG_RUN_DAYS * 86400:
        steps = int(train.max_iters * 5 * 86400 / seconds)
        texts.append(
            f"{seconds / 86400:.0f} days at 40 % of the peak. Five days are about {steps:,} steps: "
            f"set {length}, so that the learning rate reaches its floor."
        )
    if cosine and optim.lr_decay_iters > train.max_iters:
        texts.append(
            f"the learning rate reaches its floor after optim.lr_decay_iters = "
            f"{optim.lr_decay_iters:,} steps, but the run ends after {train.max_iters:,} "
            f"(train.max_iters): set both to the same number."
        )
    peaks, dtype = plan.device.peaks, plan.model_config.compute_dtype
    only_float32 = bool(peaks) and peaks["bfloat16"] == peaks["float32"]
    if plan.device.platform == "gpu" and dtype == "float32" and not only_float32:
        texts.append(
            "matmuls of float32 run at half the rate of bfloat16 at best, and move twice the "
            "bytes: model.compute_dtype=bfloat16 is faster."
        )
    if dtype == "bfloat16" and only_float32:
        texts.append(
            f"the tensor cores of {plan.device.kind} have no bfloat16: its matmuls run on the "
            f"other cores, at the rate of float32."
        )
    return texts


def refusal(plan: Plan) -> str:
    """Returns why a run cannot fit, and settings that do."""
    needs = "needs" if plan.compiled is not None else "needs, by estimate,"
    if plan.largest_batch:
        rows = plan.tokens_per_step // plan.model_config.block_size
        fits = (
            f"train.batch_size={plan.largest_batch} fits (with "
            f"train.gradient_accumulation_steps={-(-rows // plan.largest_batch)} a step keeps its "
            f"{plan.tokens_per_step:,} tokens, or nearly)"
        )
    else:
        fits = "no batch size fits"
    return (
        f"train.batch_size = {plan.config.train.batch_size} {needs} {_gib(plan.peak_bytes)} GiB "
        f"of {plan.device.kind}, and the budget is {_gib(plan.device.budget_bytes)} GiB "
        f"({plan.device.budget_reason}). {fits}. Or {_remedies(plan)}."
    )


def _remedies(plan: Plan) -> str:
    """Returns the settings left that would need less memory."""
    model, on_gpu = plan.config.model, plan.device.platform == "gpu"
    remat = {"none": "dots", "dots": "full"}.get(model.remat)
    remedies = {
        "model.loss_chunk=2048 (logits never whole)": model.loss_chunk == 0,
        "model.attention=auto (scores never T x T)": plan.model_config.attention == "xla",
        f"model.remat={remat} (recomputes more)": remat is not None,
        "give JAX more of the card (XLA_PYTHON_CLIENT_MEM_FRACTION=0.9)": on_gpu,
    }
    return ", or ".join(text for text, left in remedies.items() if left) or "take a smaller model"
