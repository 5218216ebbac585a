"""Can a run resume from a checkpoint? Each key of configs/base.py is in one of the lists below.

The rule: the current configuration must give the steps already done; later steps may change.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs.first_steps import MAX_LATER_TOKENS
from configs.workdir import completed
from data_pipeline.files import differences
from data_pipeline.token_store import Stores
from gptjax.optim import decay_start, later_token_weights, schedules

# A different value is a different run.
FIXED = frozenset(
    """
    seed data.max_train_tokens data.document_mask data.messages_column
    model.block_size model.n_layer model.n_head model.n_embd model.dropout model.bias
    model.norm model.norm_eps model.position model.rope_theta model.rope_scaling
    model.qk_norm model.mlp model.mlp_dim model.n_kv_head model.tie_embeddings model.zero_init
    optim.optimizer optim.beta1 optim.beta2 optim.eps optim.muon_momentum optim.muon_scale
    optim.grad_clip optim.ema_decay
    """.split()
)
# They decide rates, weight decay, the length of rows and the weights of later tokens, which must be
# the same for the steps already done.
SCHEDULE = frozenset(
    """
    optim.schedule optim.learning_rate optim.min_lr optim.warmup_iters optim.lr_decay_iters
    optim.rewarm_at optim.wsd_fall optim.wsd_decay_iters optim.head_learning_rate
    optim.muon_learning_rate optim.weight_decay optim.weight_decay_schedule optim.weight_decay_end
    train.max_iters train.row_lengths train.later_tokens train.later_tokens_iters
    """.split()
)
# The teacher is compared by its parameters, wherever they lie; without one there is no weight.
TEACHER = frozenset(["train.teacher", "train.teacher_weight"])
# Their product is the batch and is fixed; how it is split can follow the memory of the device.
BATCH = frozenset(["train.batch_size", "train.gradient_accumulation_steps"])
# They decide the token store, which is compared by its content, and the weights of a mixture, which
# must be the same for the steps already done.
DATA = frozenset(
    """
    data.source data.mixture data.mixture_schedule data.mixture_file
    data.text_column data.id_column data.split_by data.separator data.val_fraction
    data.drop_duplicates data.on_corrupt
    tokenizer.vocab_size tokenizer.sample_bytes tokenizer.file
    """.split()
)
# Speed, frequency and amount of output, and where it goes: logged when it changes.
FREE = frozenset(
    """
    workdir init_from allow_cpu deterministic compilation_cache_dir
    data.cache_dir data.local_dir data.cache_bytes data.engine data.prepare_workers
    data.prefetch_batches
    model.compute_dtype model.attention model.remat model.scan_unroll model.loss_chunk
    train.log_interval train.max_epochs train.max_consecutive_skips train.loss_spike_sigma
    train.max_hours eval.eval_interval eval.eval_iters
    eval.benchmarks eval.benchmark_interval eval.benchmark_limit
    checkpoint.always_save_checkpoint checkpoint.keep_latest checkpoint.keep_best
    sample.prompts sample.max_new_tokens sample.temperature sample.top_k sample.top_p
    sample.interval report.interval log.tensorboard log.wandb log.wandb_project
    mesh.data mesh.fsdp mesh.gather
    """.split()
)
_MAX_DATA_DIFFERENCES = 12  # in an error message


def identity(config: ConfigDict, store: Stores, teacher_hash: str | None = None) -> dict[str, Any]:
    """Returns what the meta of a checkpoint says of its run, for the functions below: JSON."""
    device, mixture = jax.devices()[0], store.mixture
    return {
        "config": config.to_dict(),
        "store_hash": store.hash,
        "tokenizer_hash": store.tokenizer.hash,
        "teacher": teacher_hash and {"hash": teacher_hash, "weight": config.train.teacher_weight},
        "store": store.identity,  # so that a difference can be named
        "mixture": mixture and [[phase.step, list(phase.weights)] for phase in mixture.phases],
        "environment": {
            "jax": jax.__version__,
            "devices": f"{jax.device_count()} x {device.device_kind}",
            "processes": jax.process_count(),
        },
    }


def incompatibilities(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Returns all reasons why a run cannot resume from a checkpoint; [] if it can.

    `saved` is the checkpoint's meta, with its run's `identity`; `current` is this run's identity.
    """
    old, new = completed(saved["config"]), completed(current["config"])
    problems = _config_changes(old, new, FIXED)
    problems += _batch_problems(old, new) + _schedule_problems(old, new, saved["step"])
    # Checkpoints that are older than mixtures say nothing of one.
    was, now = (_weights(run.get("mixture"), saved["step"]) for run in (saved, current))
    problems += differences(was, now, "weights of the sources in the steps done")
    was, now = (run.get("teacher") for run in (saved, current))  # old checkpoints have no entry
    if was != now:
        problems += differences(was, now, "train.teacher")
        place = old.train.teacher or '""'
        problems.append(
            f"give the same teacher, unchanged (--config.train.teacher={place}), and its weight"
        )
    for name in ("tokenizer_hash", "store_hash"):
        problems += differences(saved[name], current[name], name)
    if saved["store_hash"] != current["store_hash"]:
        # `data` is empty where only other versions of the libraries wrote the store's files.
        data = differences(saved["store"], current["store"], "data")
        problems += data[:_MAX_DATA_DIFFERENCES]
        if len(data) > _MAX_DATA_DIFFERENCES:
            problems.append(f"... {len(data):,} in all")
    return problems


def changes(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Returns what differs from the checkpoint's run, for one without incompatibilities."""
    configs = (completed(run["config"]).to_dict() for run in (saved, current))
    return differences(*configs) + differences(saved["environment"], current["environment"])


def _config_changes(old: ConfigDict, new: ConfigDict, keys: frozenset[str]) -> list[str]:
    texts = differences(old.to_dict(), new.to_dict())
    return [text for text in texts if text.partition(":")[0] in keys]


def _weights(mixture: list[Any] | None, step: int) -> dict[str, list[int]] | None:
    """Returns the weights of the sources by where they begin, over the first `step` steps."""
    if mixture is None:
        return None
    return {f"from step {first}": weights for first, weights in mixture if first < max(step, 1)}


def _batch_problems(old: ConfigDict, new: ConfigDict) -> list[str]:
    old_steps, new_steps = (c.train.gradient_accumulation_steps for c in (old, new))
    return differences(
        old.train.batch_size * old_steps,
        new.train.batch_size * new_steps,
        "rows a step (train.batch_size x train.gradient_accumulation_steps)",
    ) + differences(  # decides what the optimizer state holds
        old_steps > 1, new_steps > 1, "train.gradient_accumulation_steps > 1"
    )


def _schedule_problems(old: ConfigDict, new: ConfigDict, step: int) -> list[str]:
    """Compares the schedules over the steps done; a cosine is extended by `rewarm_at` only."""
    old_values, new_values = (_schedule_values(config, step) for config in (old, new))
    changed = {
        name: steps
        for name in sorted(old_values.keys() & new_values.keys())
        if (steps := np.flatnonzero(old_values[name] != new_values[name])).size
    }
    longer = new.train.max_iters > old.train.max_iters
    beyond_cosine = new.optim.schedule == "cosine" and not new.optim.rewarm_at
    beyond_cosine &= longer and new.train.max_iters > new.optim.lr_decay_iters
    if not changed and not beyond_cosine:
        return []
    problems = _config_changes(old, new, SCHEDULE)
    for name, steps in changed.items():
        at = steps[0]
        problems.append(
            f"so the {name.replace('_', ' ')} of {steps.size:,} of the {step:,} steps done would "
            f"have been different: of step {at + 1}, {old_values[name][at]:.3g} saved, "
            f"{new_values[name][at]:.3g} now"
        )
    if old.optim.schedule == new.optim.schedule == "cosine" and (
        longer or new.optim.lr_decay_iters > old.optim.lr_decay_iters
    ):
        # The end of a cycle that `rewarm_at` began is the end of the run.
        start = old.train.max_iters if old.optim.rewarm_at else step
        problems.append(
            "a cosine that has begun to fall cannot be made longer: raising the learning rate "
            "again loses quality (Ibrahim et al. 2024; Haegele et al. 2024), and at optim.min_lr "
            "little is learnt. A run whose length is not known takes --config.optim.schedule=wsd: "
            "until its last optim.wsd_decay_iters steps, raising --config.train.max_iters makes it "
            "longer at no loss. To extend this run all the same, with the rate rising again, add "
            f'--config.optim.rewarm_at="{(*old.optim.rewarm_at, start)}" to the settings of before '
            "and the new --config.train.max_iters"
        )
    if old.optim.schedule == new.optim.schedule == "wsd" and "learning_rate" in changed:
        start = decay_start(old.optim, old.train.max_iters)
        problems.append(
            f"the learning rate of a wsd run may change until its decay begins, at step {start:,}: "
            f"move the later checkpoints away to resume from the one kept before it"
        )
    if old.optim.weight_decay_schedule == "linear" and "weight_decay" in changed:
        problems.append(
            "a linear weight decay depends on train.max_iters from the first step on: such a run "
            "keeps its length"
        )
    return problems


def _schedule_values(config: ConfigDict, step: int) -> dict[str, np.ndarray]:
    """Returns the values of the first `step` steps by the name of their schedule: f32 [step]."""
    train, steps = config.train, jnp.arange(step)
    values = {
        name: np.broadcast_to(np.asarray(schedule(steps)), step)
        for name, schedule in schedules(config.optim, train.max_iters).items()
    }
    values["pieces_of_a_row"] = np.ones(step, int)
    for end, length in reversed(train.row_lengths):
        values["pieces_of_a_row"][:end] = config.model.block_size // length
    weights_SK = np.asarray(later_token_weights(train, steps))
    for k in range(MAX_LATER_TOKENS):
        there = k < weights_SK.shape[1]
        values[f"weight_of_token_{k + 2}_ahead"] = weights_SK[:, k] if there else np.zeros(step)
    return values
