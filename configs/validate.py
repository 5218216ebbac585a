"""Checks of a configuration: range or choices of each key, relations between keys, key names."""

import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import base, first_steps, mixture
from configs.errors import UserError

MAX_SIZE = 1 << 20  # of a model's dimensions: products of three fit into 64 bits
MAX_VOCAB_SIZE = MAX_SIZE  # four times the largest in use; ids are int32
MAX_STEPS = 1 << 24  # of a run: a float32, as in schedules, counts no further

_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "must be positive",
        lambda x: x > 0,
        """
        model.rope_theta train.batch_size train.gradient_accumulation_steps train.log_interval
        train.max_epochs train.max_consecutive_skips train.max_hours eval.eval_interval
        eval.eval_iters optim.learning_rate optim.muon_learning_rate optim.lr_decay_iters optim.eps
        tokenizer.sample_bytes data.prefetch_batches data.cache_bytes checkpoint.keep_latest
        mesh.fsdp
        """,
    ),
    (
        "must not be negative",
        lambda x: x >= 0,
        """
        seed model.loss_chunk optim.min_lr optim.head_learning_rate optim.warmup_iters
        optim.wsd_decay_iters optim.weight_decay optim.weight_decay_end optim.grad_clip
        train.later_tokens_iters train.loss_spike_sigma data.max_train_tokens data.prepare_workers
        checkpoint.keep_best eval.benchmark_interval eval.benchmark_limit sample.interval
        sample.max_new_tokens sample.temperature sample.top_k report.interval mesh.data
        """,
    ),
    (
        f"must be positive and at most {MAX_SIZE:,}",
        lambda x: 0 < x <= MAX_SIZE,
        "model.block_size model.n_layer model.n_head model.n_embd model.scan_unroll "
        "tokenizer.vocab_size",
    ),
    (
        f"must be positive and at most {MAX_STEPS:,}",
        lambda x: 0 < x <= MAX_STEPS,
        "train.max_iters",
    ),
    (
        f"must not be negative and at most {MAX_SIZE:,}",
        lambda x: 0 <= x <= MAX_SIZE,
        "model.n_kv_head model.mlp_dim",
    ),
    (
        "must be in [0, 1)",
        lambda x: 0 <= x < 1,
        "model.dropout model.norm_eps optim.beta1 optim.beta2 optim.muon_momentum optim.ema_decay",
    ),
    ("must be in (0, 1)", lambda x: 0 < x < 1, "data.val_fraction"),
    ("must be in (0, 1]", lambda x: 0 < x <= 1, "sample.top_p train.teacher_weight"),
)
_CHOICES = {
    "model.compute_dtype": ("auto", "float32", "bfloat16"),
    "model.attention": ("auto", "xla", "chunked", "cudnn", "pallas"),
    "model.remat": ("none", "dots", "full"),
    "model.norm": ("layernorm", "rmsnorm"),
    "model.position": ("learned", "rope"),
    "model.mlp": ("gelu", "swiglu", "relu2"),
    "data.on_corrupt": ("stop", "keep_before"),
    "data.engine": ("local", "ray"),
    "optim.optimizer": ("adamw", "muon"),
    "optim.schedule": ("cosine", "wsd"),
    "optim.wsd_fall": ("sqrt", "linear"),
    "optim.muon_scale": ("rms", "spectral"),
    "optim.weight_decay_schedule": ("constant", "linear"),
    "mesh.gather": ("step", "layer"),
}


def _is_scaling(values: Any) -> bool:
    """Returns whether model.rope_scaling is what configs/base.py says."""
    if not isinstance(values, tuple) or len(values) not in (0, 1, 4):
        return False
    if not all(type(x) in (int, float) and 0 < x < MAX_SIZE for x in values):
        return False
    return len(values) < 4 or values[1] < values[2]


_TEXTS = "sample.prompts eval.benchmarks"
# key -> (what a value must be, whether it is); a key that is not set (None) always passes.
CONSTRAINTS: dict[str, tuple[str, Callable[[Any], bool]]] = (
    {key: (text, holds) for text, holds, keys in _RANGES for key in keys.split()}
    | {
        key: (f"must be one of {', '.join(values)}", values.__contains__)
        for key, values in _CHOICES.items()
    }
    | {
        key: ("must hold texts", lambda texts: all(isinstance(text, str) for text in texts))
        for key in _TEXTS.split()
    }
    | {"data.text_column": ("must not be empty", bool)}
    | {
        "data.cache_dir": (  # its file systems do not make the folders above a file
            "must be a path where it is a folder of this machine, without file:",
            lambda place: not place.startswith("file:"),
        )
    }
    | {"model.rope_scaling": ("must be (), (factor,), or Llama 3's four numbers", _is_scaling)}
)


def validate(config: ConfigDict, n_devices: int, extra_problems: Sequence[str] = ()) -> None:
    """Raises UserError that lists every problem of `config`, and the caller's `extra_problems`.

    Reads no file but data.mixture_file. `n_devices` counts the devices of all processes.
    """
    values = leaves(config)
    problems = unknown_keys(values) + range_problems(values)
    raise_problems([*problems, *_relations(config, n_devices), *extra_problems])


def range_problems(values: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each value, by dotted key, that violates its key's constraint."""
    return [
        f"{key} = {values[key]!r} {text}"
        for key, (text, holds) in CONSTRAINTS.items()
        if values.get(key) is not None and not holds(values[key])
    ]


def _relations(config: ConfigDict, n_devices: int) -> Iterator[str]:
    """Yields the problems of keys that are valid alone but not together, or not on the devices."""
    model, optim, train = config.model, config.optim, config.train
    yield from mixture.problems(config.data)
    yield from first_steps.problems(config)
    yield from model_problems(model)
    yield from chat_problems(config)
    if model.attention == "cudnn" and config.data.document_mask:
        yield (
            "model.attention = 'cudnn' cannot honour data.document_mask = True: use auto, pallas "
            "or chunked"
        )
    if model.attention == "cudnn" and model.compute_dtype == "float32":
        yield "model.attention = 'cudnn' needs model.compute_dtype = bfloat16"
    if model.attention == "cudnn" and model.n_head > 0 and model.n_embd // model.n_head % 8:
        yield (
            "model.attention = 'cudnn' needs heads (model.n_embd / model.n_head) of a multiple "
            "of 8 wide"
        )
    tokens = train.batch_size // n_devices * model.block_size
    if model.loss_chunk > 0 and tokens % model.loss_chunk:
        yield (
            f"model.loss_chunk = {model.loss_chunk} must divide the {tokens:,} tokens of a "
            f"micro-step on a device (train.batch_size x model.block_size / {n_devices} devices)"
        )
    if optim.min_lr > optim.learning_rate:
        yield f"optim.min_lr = {optim.min_lr} exceeds optim.learning_rate = {optim.learning_rate}"
    if optim.head_learning_rate > 0 and model.tie_embeddings:
        yield "optim.head_learning_rate is of a head of its own: model.tie_embeddings = False"
    if train.teacher and Path(train.teacher).resolve() == Path(config.workdir).resolve():
        yield f"train.teacher = {train.teacher} is this run's workdir: give it another workdir"
    planned = optim.warmup_iters + optim.wsd_decay_iters
    if optim.schedule == "wsd" and planned > train.max_iters:
        yield (
            f"optim.warmup_iters + optim.wsd_decay_iters = {planned} exceed train.max_iters = "
            f"{train.max_iters}"
        )
    if optim.schedule == "cosine" and optim.warmup_iters >= optim.lr_decay_iters:
        yield (
            f"optim.warmup_iters = {optim.warmup_iters} must be below optim.lr_decay_iters = "
            f"{optim.lr_decay_iters}, which counts the warm-up too"
        )
    if optim.rewarm_at and optim.schedule != "cosine":
        yield "optim.rewarm_at is for optim.schedule = cosine: raising train.max_iters extends wsd"
    elif optim.rewarm_at:
        cycles = itertools.pairwise([0, *optim.rewarm_at, train.max_iters])
        if not all(isinstance(b, int) and b - a > optim.warmup_iters for a, b in cycles):
            yield (
                f"optim.rewarm_at = {optim.rewarm_at} must be increasing steps whose distances, "
                f"the one to train.max_iters = {train.max_iters} included, exceed "
                f"optim.warmup_iters = {optim.warmup_iters}"
            )
    if train.batch_size % n_devices:
        yield f"train.batch_size = {train.batch_size} must be a multiple of the {n_devices} devices"
    mesh = config.mesh
    if mesh.fsdp > 0 and n_devices % mesh.fsdp:
        yield f"mesh.fsdp = {mesh.fsdp} must divide the {n_devices} devices"
    if mesh.data > 0 and mesh.data * mesh.fsdp != n_devices:
        yield (
            f"mesh.data = {mesh.data} x mesh.fsdp = {mesh.fsdp} must be the {n_devices} devices; "
            f"with mesh.data = 0 it follows their number"
        )
    if config.sample.interval and not config.sample.prompts:
        yield f"sample.interval = {config.sample.interval} needs sample.prompts to continue"
    if not all(config.eval.benchmarks):
        yield 'eval.benchmarks names an empty path: --config.eval.benchmarks="()" is none'


def chat_problems(config: ConfigDict) -> Iterator[str]:
    """Yields what conversations lack."""
    if config.data.messages_column and not config.tokenizer.file:
        yield (
            "data.messages_column needs tokenizer.file: conversations tune a model that was "
            "trained on text, and its tokenizer gets the markers of a chat. "
            "gptjax train chat:WORKDIR sets both"
        )


def model_problems(model: ConfigDict) -> Iterator[str]:
    """Yields the problems of keys of `model` that are valid alone but give no model together."""
    if model.n_head > 0:
        head_dim, rest = divmod(model.n_embd, model.n_head)
        if rest:
            yield (
                f"model.n_embd = {model.n_embd} must be a multiple of model.n_head = {model.n_head}"
            )
        if model.position == "rope" and head_dim % 2:
            yield (
                f"model.position = 'rope' rotates pairs, so that heads (model.n_embd / "
                f"model.n_head = {head_dim}) must be of an even width"
            )
        if model.n_kv_head > 0 and model.n_head % model.n_kv_head:
            yield f"model.n_kv_head = {model.n_kv_head} must divide model.n_head = {model.n_head}"
    if model.bias and model.norm == "rmsnorm":
        yield "model.bias = True needs model.norm = layernorm: an RMSNorm has no bias"


def raise_problems(problems: Sequence[str]) -> None:
    """Raises UserError that lists all `problems`, if there are any."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"the configuration has {count}:\n  - " + "\n  - ".join(problems))


def leaves(config: ConfigDict | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of a configuration, or of nested dicts, by dotted name."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, ConfigDict | dict)
        values |= leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return values


def unknown_keys(keys: Iterable[str]) -> list[str]:
    """Returns a sentence, with the nearest match, for each of `keys` that configs/base.py lacks."""
    known = leaves(base.get_config())
    by_leaf = {name.rpartition(".")[2]: name for name in known}
    problems = []
    for key in keys:
        if key in known:
            continue
        nearest = keys_like(key) or difflib.get_close_matches(key, known, n=1)
        if not nearest:
            leaf = difflib.get_close_matches(key.rpartition(".")[2], by_leaf, n=1)
            nearest = [by_leaf[name] for name in leaf]
        hint = f" (did you mean {' or '.join(nearest)}?)" if nearest else ""
        problems.append(f"{key} is not a key of configs/base.py{hint}")
    return problems


def keys_like(name: str) -> list[str]:
    """Returns the key `name`, or else all keys with its last part, in whatever group."""
    known, leaf = leaves(base.get_config()), name.rpartition(".")[2]
    return [name] if name in known else [key for key in known if key.rpartition(".")[2] == leaf]
