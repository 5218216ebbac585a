"""May a run go on from a checkpoint? Each key of configs/base.py has its place in one list here.

The rule: what a run has done must be what the configuration of now would have done; what it does
next may change.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs.validate import leaves
from configs.workdir import completed
from data_pipeline.files import differences
from data_pipeline.token_store import TokenStore
from gptjax.optim.schedules import decay_start, schedules

# Another value makes another run.
FIXED = frozenset(
    """
    seed data.max_train_tokens data.document_mask
    model.block_size model.n_layer model.n_head model.n_embd model.dropout model.bias
    model.norm model.position model.rope_theta model.qk_norm model.mlp model.mlp_dim
    model.n_kv_head model.tie_embeddings model.zero_init
    optim.optimizer optim.beta1 optim.beta2 optim.eps optim.muon_momentum optim.grad_clip
    optim.ema_decay
    """.split()
)
# They decide learning rates and weight decay: those of the steps done must stay what they were.
SCHEDULE = frozenset(
    """
    optim.schedule optim.learning_rate optim.min_lr optim.warmup_iters optim.lr_decay_iters
    optim.wsd_decay_iters optim.muon_learning_rate optim.weight_decay optim.weight_decay_schedule
    optim.weight_decay_end train.max_iters
    """.split()
)
# Their product is the batch and must stay; how it is cut may follow the memory of the device.
BATCH = frozenset(["train.batch_size", "train.gradient_accumulation_steps"])
# They decide the token store, which is compared by what it contains.
DATA = frozenset(
    """
    data.source data.val_fraction data.on_corrupt tokenizer.vocab_size tokenizer.sample_bytes
    tokenizer.file
    """.split()
)
# How fast, how often, how much is told and kept, and where: logged when it changes.
FREE = frozenset(
    """
    workdir init_from compilation_cache_dir data.cache_dir data.prepare_workers
    data.prefetch_batches
    model.compute_dtype model.attention model.remat model.scan_unroll model.loss_chunk
    train.log_interval train.max_epochs train.max_consecutive_skips train.loss_spike_sigma
    train.max_hours
    eval.eval_interval eval.eval_iters
    eval.benchmarks eval.benchmark_interval eval.benchmark_limit
    checkpoint.always_save_checkpoint checkpoint.keep_latest checkpoint.keep_best
    sample.interval report.interval
    sample.prompts sample.max_new_tokens sample.temperature sample.top_k sample.top_p
    log.tensorboard log.wandb log.wandb_project mesh.fsdp
    claims.n_params claims.source_tokens claims.passes claims.steps_per_sec claims.days
    claims.expected_tokens claims.batch_fits
    """.split()
)
_SHOWN = 12  # differences of the data in an error


def identity(config: ConfigDict, store: TokenStore) -> dict[str, Any]:
    """Returns what a checkpoint keeps of its run for `incompatibilities` and `changes`: JSON."""
    device = jax.devices()[0]
    return {
        "config": config.to_dict(),
        "store_hash": store.hash,
        "tokenizer_hash": store.tokenizer.hash,
        "store": store.identity,  # so that a difference can be named
        "environment": {
            "jax": jax.__version__,
            "devices": f"{jax.device_count()} x {device.device_kind}",
            "processes": jax.process_count(),
        },
    }


def incompatibilities(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Returns why the run `here` cannot go on from a checkpoint: all reasons; [] if it can.

    Args:
        there: the checkpoint's meta: its run's `identity`, and `step`.
        here: `identity` of this run.
    """
    old, new = completed(there["config"]), completed(here["config"])
    found = [text for text in _changed(old, new) if text.partition(":")[0] in FIXED]
    found += _batch_refusals(old, new) + _schedule_refusals(old, new, there["step"])
    for name in ("tokenizer_hash", "store_hash"):
        found += differences(there[name], here[name], name)
    if there["store_hash"] != here["store_hash"]:
        # Nothing else may differ: where other versions of the libraries made the files.
        data = differences(there["store"], here["store"], "data")
        found += [*data[:_SHOWN], *([f"... {len(data):,} in all"] if data[_SHOWN:] else [])]
    return found


def changes(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Returns, for a run that is not refused, what is another than in the checkpoint's run."""
    found = _changed(completed(there["config"]), completed(here["config"]))
    return found + differences(there["environment"], here["environment"])


def _get(config: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _changed(old: ConfigDict, new: ConfigDict) -> list[str]:
    return [
        text
        for key in leaves(new)
        for text in differences(_get(old, key), _get(new, key), key)
        if _get(old, key) != _get(new, key)
    ]


def _batch_refusals(old: ConfigDict, new: ConfigDict) -> list[str]:
    a, b = ((c.train.batch_size * c.train.gradient_accumulation_steps, c.train) for c in (old, new))
    found = []
    if a[0] != b[0]:
        found.append(
            f"train.batch_size x train.gradient_accumulation_steps: "
            f"{a[0]} rows a step there, {b[0]} here"
        )
    accumulates = [train.gradient_accumulation_steps > 1 for _, train in (a, b)]
    if accumulates[0] != accumulates[1]:  # decides what the optimizer keeps
        found.append(
            f"train.gradient_accumulation_steps > 1: {accumulates[0]} there, {accumulates[1]} here"
        )
    return found


def _schedule_refusals(old: ConfigDict, new: ConfigDict, step: int) -> list[str]:
    """Compares what the steps done were made with, and looks for a decayed run made longer."""
    values = [_schedule_values(config, step) for config in (old, new)]
    others = {
        name: np.flatnonzero(values[0][name] != values[1][name])
        for name in values[0].keys() & values[1].keys()
    }
    others = {name: steps for name, steps in sorted(others.items()) if steps.size}
    past_the_end = new.optim.schedule == "cosine" and new.train.max_iters > max(
        old.train.max_iters, new.optim.lr_decay_iters
    )
    if not others and not past_the_end:
        return []
    found = [t for t in _changed(old, new) if t.partition(":")[0] in SCHEDULE]
    for name, steps in others.items():
        there, here = (v[name][steps[0]] for v in values)
        found.append(
            f"so the {name.replace('_', ' ')} of {steps.size:,} of the {step:,} steps done would "
            f"have been another: of step {steps[0] + 1}, {there:.3g} there, {here:.3g} here"
        )
    if old.optim.schedule == new.optim.schedule == "cosine" and (
        past_the_end or new.optim.lr_decay_iters > old.optim.lr_decay_iters
    ):
        found.append(
            "a cosine that has begun to fall cannot be made longer: raising the learning rate "
            "again loses quality (Ibrahim et al. 2024; Haegele et al. 2024), and at optim.min_lr "
            "little is learnt. A run whose length is not known takes --config.optim.schedule=wsd: "
            "until its last optim.wsd_decay_iters steps, raising --config.train.max_iters makes it "
            "longer at no loss"
        )
    if old.optim.schedule == new.optim.schedule == "wsd" and "learning_rate" in others:
        start = decay_start(old.optim, old.train.max_iters)
        found.append(
            f"the learning rate of a wsd run may change until its decay begins, here at step "
            f"{start:,}: move the later checkpoints away to go on from the one kept before it"
        )
    if old.optim.weight_decay_schedule == "linear" and "weight_decay" in others:
        found.append(
            "a linear weight decay depends on train.max_iters from the first step on: such a run "
            "keeps its length"
        )
    return found


def _schedule_values(config: ConfigDict, step: int) -> dict[str, np.ndarray]:
    """Returns by name what each of the first `step` steps is made with."""
    steps = jnp.arange(step)
    return {
        name: np.broadcast_to(np.asarray(of(steps)), step)
        for name, of in schedules(config.optim, config.train.max_iters).items()
    }
