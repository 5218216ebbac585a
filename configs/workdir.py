"""The configuration of an earlier run, from its workdir: to resume it, or to train one like it.

Run `gptjax train workdir:runs/quickstart`.

A workdir can come from somebody else. Of its config.json only the keys of RECIPE are used: what the
model is and how it is trained. The keys of MACHINE say what is executed, read, written or sent on
this machine: they have the defaults of configs/base.py and the values of the command line, and
`workdir` is the folder that was given.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.errors import UserError
from configs.read import MIB, read_json
from configs.validate import leaves

CONFIG = "config.json"  # in every workdir
MAX_CONFIG = MIB  # bytes
RECIPE = frozenset(
    """
    seed deterministic data.val_fraction data.max_train_tokens data.document_mask data.on_corrupt
    data.drop_duplicates data.messages_column
    tokenizer.vocab_size tokenizer.sample_bytes
    model.block_size model.n_layer model.n_head model.n_kv_head model.n_embd model.norm
    model.norm_eps model.position model.rope_theta model.rope_scaling model.qk_norm model.mlp
    model.mlp_dim model.tie_embeddings
    model.zero_init model.dropout model.bias model.compute_dtype model.attention model.remat
    model.scan_unroll model.loss_chunk
    optim.optimizer optim.learning_rate optim.head_learning_rate optim.min_lr optim.schedule
    optim.warmup_iters
    optim.lr_decay_iters optim.rewarm_at optim.wsd_fall optim.wsd_decay_iters optim.weight_decay
    optim.weight_decay_schedule optim.weight_decay_end optim.beta1 optim.beta2 optim.eps
    optim.muon_learning_rate optim.muon_scale optim.muon_momentum optim.grad_clip optim.ema_decay
    train.batch_size train.gradient_accumulation_steps train.row_lengths train.later_tokens
    train.later_tokens_iters train.teacher_weight train.max_iters train.log_interval
    train.max_epochs train.max_consecutive_skips train.loss_spike_sigma train.max_hours
    eval.eval_interval eval.eval_iters eval.benchmark_interval eval.benchmark_limit
    checkpoint.always_save_checkpoint checkpoint.keep_latest checkpoint.keep_best
    sample.prompts sample.interval sample.max_new_tokens sample.temperature sample.top_k
    sample.top_p
    """.split()
)
# JAX executes what lies in its compilation cache; the others are paths, devices and destinations.
MACHINE = frozenset(
    """
    workdir allow_cpu compilation_cache_dir init_from train.teacher
    data.source data.text_column data.id_column data.split_by data.separator
    data.mixture data.mixture_schedule data.mixture_file data.cache_dir data.local_dir
    data.cache_bytes data.engine data.prepare_workers data.prefetch_batches tokenizer.file
    eval.benchmarks report.interval log.tensorboard log.wandb log.wandb_project
    mesh.data mesh.fsdp mesh.gather
    """.split()
)


def get_config(workdir: str) -> ConfigDict:
    """Returns the `recipe` of `workdir`/config.json."""
    return recipe(_saved(workdir), workdir)


def recipe(saved: dict[str, Any], workdir: str) -> ConfigDict:
    """Returns a saved configuration, `completed`, for a run in `workdir` on this machine."""
    config, defaults = completed(saved), leaves(base.get_config())
    config.update_from_flattened_dict({key: defaults[key] for key in MACHINE})
    config.workdir = workdir
    return config


def completed(saved: dict[str, Any]) -> ConfigDict:
    """Returns a saved configuration in which keys that are newer than it have their defaults.

    The default of a key is what runs did before the key existed. Unknown keys stay: the caller
    refuses them. UserError where the value of a key is of another type.
    """
    config, defaults = base.get_config(), leaves(base.get_config())
    try:
        config.update(ConfigDict(_tuples(saved)))
        unset = [key for key, value in leaves(config).items() if value is None]
        if unset := [key for key in unset if defaults.get(key) is not None]:
            raise ValueError(f"{', '.join(unset)} is null")
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"this is no configuration ({error})") from error
    return config


def _tuples(value: Any) -> Any:
    """Returns a JSON value with tuples for lists, as configurations have them."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def unused(workdir: str, config: ConfigDict) -> list[str]:
    """Returns a flag for each key of MACHINE whose value in `workdir`/config.json is another."""
    saved, used = leaves(completed(_saved(workdir))), leaves(config)
    keys = sorted(key for key in MACHINE - {"workdir"} if saved[key] != used[key])
    return [f"--config.{key}={saved[key]!r:.100}" for key in keys]


def _saved(workdir: str) -> dict[str, Any]:
    saved: dict[str, Any] = read_json(Path(workdir) / CONFIG, MAX_CONFIG)
    return saved
