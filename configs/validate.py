"""What a configuration must satisfy, and the names of its keys."""

import difflib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.errors import UserError

_log = logging.getLogger(__name__)


def validate(config: ConfigDict, n_devices: int, further: Sequence[str] = ()) -> None:
    """Raises UserError with every contradiction of `config` at once; reads no file and no data.

    Args:
        config: see configs/base.py.
        n_devices: of the run, over all processes.
        further: problems that others found, to be told with these.
    """
    model, optim, train, data = config.model, config.optim, config.train, config.data
    problems = unknown_keys(leaves(config))

    def require(condition: bool, problem: str) -> None:
        if not condition:
            problems.append(problem)

    positive = {
        "model": ("block_size", "n_layer", "n_head", "n_embd", "rope_theta", "scan_unroll"),
        "train": (
            "batch_size",
            "gradient_accumulation_steps",
            "max_iters",
            "log_interval",
            "max_epochs",
            "max_consecutive_skips",
        ),
        "eval": ("eval_interval", "eval_iters"),
        "optim": ("learning_rate", "muon_learning_rate", "lr_decay_iters", "eps"),
        "tokenizer": ("vocab_size", "sample_bytes"),
        "data": ("prefetch_batches",),
        "checkpoint": ("keep_latest",),
        "mesh": ("fsdp",),
    }
    for group, keys in positive.items():
        for key in keys:
            require(
                config[group][key] > 0, f"{group}.{key} = {config[group][key]} must be positive"
            )
    not_negative = {
        "optim": (
            "min_lr",
            "warmup_iters",
            "wsd_decay_iters",
            "weight_decay",
            "weight_decay_end",
            "grad_clip",
        ),
        "model": ("loss_chunk", "n_kv_head", "mlp_dim"),
        "train": ("loss_spike_sigma",),
        "data": ("max_train_tokens", "prepare_workers"),
        "checkpoint": ("keep_best",),
        "eval": ("benchmark_interval", "benchmark_limit"),
        "sample": ("interval", "max_new_tokens", "temperature", "top_k"),
        "report": ("interval",),
    }
    for group, keys in not_negative.items():
        for key in keys:
            value = config[group][key]
            require(value >= 0, f"{group}.{key} = {value} must not be negative")
    for group, key, values in (
        ("model", "compute_dtype", ("auto", "float32", "bfloat16")),
        ("model", "attention", ("auto", "xla", "chunked", "cudnn", "pallas")),
        ("model", "remat", ("none", "dots", "full")),
        ("model", "norm", ("layernorm", "rmsnorm")),
        ("model", "position", ("learned", "rope")),
        ("model", "mlp", ("gelu", "swiglu", "relu2")),
        ("data", "on_corrupt", ("stop", "keep_before")),
        ("optim", "optimizer", ("adamw", "muon")),
        ("optim", "schedule", ("cosine", "wsd")),
        ("optim", "weight_decay_schedule", ("constant", "linear")),
    ):
        value = config[group][key]
        require(value in values, f"{group}.{key} = {value!r} must be one of {', '.join(values)}")

    if model.n_head > 0:
        require(
            model.n_embd % model.n_head == 0,
            f"model.n_embd = {model.n_embd} must be a multiple of model.n_head = {model.n_head}",
        )
        require(
            model.position != "rope" or (model.n_embd // model.n_head) % 2 == 0,
            f"model.position = 'rope' turns pairs, so that heads (model.n_embd / model.n_head = "
            f"{model.n_embd // model.n_head}) must be of an even width",
        )
        require(
            model.n_kv_head <= 0 or model.n_head % model.n_kv_head == 0,
            f"model.n_kv_head = {model.n_kv_head} must divide model.n_head = {model.n_head}",
        )
    require(
        not (model.bias and model.norm == "rmsnorm"),
        "model.bias = True needs model.norm = layernorm: an RMSNorm has no bias",
    )
    if model.attention == "cudnn":
        require(
            not data.document_mask,
            "model.attention = 'cudnn' cannot honour data.document_mask = True: use auto, pallas "
            "or chunked",
        )
        require(
            model.compute_dtype != "float32",
            "model.attention = 'cudnn' needs model.compute_dtype = bfloat16",
        )
        require(
            model.n_head <= 0 or (model.n_embd // model.n_head) % 8 == 0,
            "model.attention = 'cudnn' needs heads (model.n_embd / model.n_head) of a multiple of "
            "8 wide",
        )
    require(0 <= model.dropout < 1, f"model.dropout = {model.dropout} must be in [0, 1)")
    for key in ("beta1", "beta2", "muon_momentum", "ema_decay"):
        require(0 <= optim[key] < 1, f"optim.{key} = {optim[key]} must be in [0, 1)")
    require(0 < data.val_fraction < 1, f"data.val_fraction = {data.val_fraction} must be in (0, 1)")
    require(0 < config.sample.top_p <= 1, f"sample.top_p = {config.sample.top_p} must be in (0, 1]")
    require(
        optim.min_lr <= optim.learning_rate,
        f"optim.min_lr = {optim.min_lr} exceeds optim.learning_rate = {optim.learning_rate}",
    )
    require(
        optim.schedule != "wsd" or optim.warmup_iters + optim.wsd_decay_iters <= train.max_iters,
        f"optim.warmup_iters + optim.wsd_decay_iters = "
        f"{optim.warmup_iters + optim.wsd_decay_iters} exceed train.max_iters = {train.max_iters}",
    )
    require(
        optim.schedule != "cosine" or optim.warmup_iters < optim.lr_decay_iters,
        f"optim.warmup_iters = {optim.warmup_iters} must be below optim.lr_decay_iters = "
        f"{optim.lr_decay_iters}, which counts the warm-up too",
    )
    require(
        train.batch_size % n_devices == 0,
        f"train.batch_size = {train.batch_size} must be a multiple of the {n_devices} devices",
    )
    if config.mesh.fsdp > 0:
        require(
            n_devices % config.mesh.fsdp == 0,
            f"mesh.fsdp = {config.mesh.fsdp} must divide the {n_devices} devices",
        )
    tokens = train.batch_size * model.block_size
    if model.loss_chunk > 0:
        require(
            tokens % model.loss_chunk == 0,
            f"model.loss_chunk = {model.loss_chunk} must divide the {tokens:,} tokens of a "
            f"micro-step (train.batch_size x model.block_size)",
        )
    require(
        config.tokenizer.vocab_size <= 65_536,
        f"tokenizer.vocab_size = {config.tokenizer.vocab_size:,} exceeds 65,536: the token store "
        f"keeps 16 bits a token",
    )
    require(
        train.max_hours is None or train.max_hours > 0,
        f"train.max_hours = {train.max_hours} must be positive",
    )
    require(config.seed >= 0, f"seed = {config.seed} must not be negative")
    require(
        not config.sample.interval or bool(config.sample.prompts),
        f"sample.interval = {config.sample.interval} needs sample.prompts to continue",
    )
    require(
        all(config.eval.benchmarks),
        'eval.benchmarks names an empty path: --config.eval.benchmarks="()" is none',
    )
    raise_problems([*problems, *further])


def raise_problems(problems: list[str]) -> None:
    """Raises UserError that lists all `problems`, where there are any."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"the configuration has {count}:\n  - " + "\n  - ".join(problems))


def leaves(config: ConfigDict, prefix: str = "") -> list[str]:
    """Returns the dotted names of all leaves, such as `optim.learning_rate`."""
    names = []
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            names += leaves(value, f"{prefix}{key}.")
        else:
            names.append(f"{prefix}{key}")
    return names


def unknown_keys(keys: list[str]) -> list[str]:
    """Returns a sentence, with the nearest match, for each of `keys` that configs/base.py lacks."""
    known = leaves(base.get_config())
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in known}
    problems = []
    for key in keys:
        if key in known:
            continue
        nearest = difflib.get_close_matches(key, known, n=1)
        if not nearest:  # the right leaf, perhaps, under the wrong group or under none
            leaf = difflib.get_close_matches(key.rsplit(".", 1)[-1], by_leaf, n=1)
            nearest = [by_leaf[name] for name in leaf]
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        problems.append(f"{key} is not a key of configs/base.py{hint}")
    return problems


def leaves_of(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested dicts with their dotted names."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
