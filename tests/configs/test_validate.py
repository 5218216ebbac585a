"""What a configuration must satisfy; all problems are listed at once."""

import copy
import re

import jax
import pytest
from ml_collections import ConfigDict

from configs import base, debug
from configs.errors import UserError
from configs.validate import CONSTRAINTS, leaves, unknown_keys, validate
from data_pipeline.subset import validate_store
from gptjax.model.layers import compute_dtype


def changed(changes: dict) -> ConfigDict:
    config = debug.get_config()
    config.update_from_flattened_dict(changes)
    return config


def problems_of(config: ConfigDict, n_devices: int = 1) -> list[str]:
    with pytest.raises(UserError) as error:
        validate(config, n_devices)
    first, *problems = str(error.value).split("\n  - ")
    count = "1 problem:" if len(problems) == 1 else f"{len(problems)} problems:"
    assert first.endswith(count)
    return problems


POSITIVE = """
    model.block_size model.n_layer model.n_head model.n_embd model.scan_unroll
    train.batch_size train.gradient_accumulation_steps train.max_iters train.log_interval
    eval.eval_interval eval.eval_iters optim.learning_rate optim.lr_decay_iters optim.eps
    tokenizer.sample_bytes data.prefetch_batches checkpoint.keep_latest mesh.fsdp
    train.max_epochs train.max_consecutive_skips model.rope_theta
    optim.muon_learning_rate
""".split()
NOT_NEGATIVE = """
    optim.min_lr optim.warmup_iters optim.wsd_decay_iters optim.weight_decay optim.grad_clip
    model.loss_chunk data.prepare_workers checkpoint.keep_best sample.max_new_tokens
    sample.temperature sample.top_k train.loss_spike_sigma sample.interval report.interval
    eval.benchmark_interval eval.benchmark_limit model.n_kv_head model.mlp_dim
    optim.weight_decay_end data.max_train_tokens optim.head_learning_rate
    train.later_tokens_iters
""".split()
RULES = [
    *((name, {name: 0}, f"{name} = 0(.0)? must be positive") for name in POSITIVE),
    *((name, {name: -1}, f"{name} = -1(.0)? must not be negative") for name in NOT_NEGATIVE),
    ("compute_dtype", {"model.compute_dtype": "float16"}, "auto, float32, bfloat16"),
    ("remat", {"model.remat": "some"}, "model.remat = 'some' must be one of none, dots, full"),
    ("on_corrupt", {"data.on_corrupt": "skip"}, "'skip' must be one of stop, keep_before"),
    ("norm", {"model.norm": "batchnorm"}, "must be one of layernorm, rmsnorm"),
    ("position", {"model.position": "alibi"}, "must be one of learned, rope"),
    ("mlp", {"model.mlp": "relu"}, "must be one of gelu, swiglu, relu2"),
    ("shared heads", {"model.n_kv_head": 3}, "n_kv_head = 3 must divide model.n_head = 2"),
    ("bias of RMSNorm", {"model.norm": "rmsnorm", "model.bias": True}, "RMSNorm has no bias"),
    (
        "odd heads with rope",
        {"model.position": "rope", "model.n_embd": 30},
        "n_head = 15. must be of an even width",
    ),
    ("heads", {"model.n_head": 3}, "n_embd = 32 must be a multiple of model.n_head = 3"),
    ("dropout of all", {"model.dropout": 1.0}, r"dropout = 1.0 must be in \[0, 1\)"),
    ("dropout below 0", {"model.dropout": -0.1}, r"dropout = -0.1 must be in \[0, 1\)"),
    ("beta1", {"optim.beta1": 1.0}, r"beta1 = 1.0 must be in \[0, 1\)"),
    ("beta2", {"optim.beta2": -0.5}, r"beta2 = -0.5 must be in \[0, 1\)"),
    ("no val", {"data.val_fraction": 0.0}, r"val_fraction = 0.0 must be in \(0, 1\)"),
    ("only val", {"data.val_fraction": 1.0}, r"val_fraction = 1.0 must be in \(0, 1\)"),
    ("top_p of 0", {"sample.top_p": 0.0}, r"top_p = 0.0 must be in \(0, 1\]"),
    ("top_p over 1", {"sample.top_p": 1.1}, r"top_p = 1.1 must be in \(0, 1\]"),
    ("rate of a tied head", {"optim.head_learning_rate": 0.1}, "model.tie_embeddings = False"),
    ("min_lr", {"optim.min_lr": 0.5}, "min_lr = 0.5 exceeds optim.learning_rate = 0.01"),
    ("warmup", {"optim.warmup_iters": 20}, "warmup_iters = 20 must be below optim.lr_decay_iters"),
    ("no order", {"optim.rewarm_at": (9, 7)}, r"rewarm_at = \(9, 7\) must be increasing steps"),
    ("short cycle", {"optim.rewarm_at": (18,)}, r"exceed optim.warmup_iters = 2"),
    ("no steps", {"optim.rewarm_at": (9.5,)}, r"\(9.5,\) must be increasing steps"),
    ("rewarmed wsd", {"optim.schedule": "wsd", "optim.rewarm_at": (9,)}, "schedule = cosine"),
    ("loss_chunk", {"model.loss_chunk": 100}, "loss_chunk = 100 must divide the 128 tokens"),
    ("hours", {"train.max_hours": 0.0}, "max_hours = 0.0 must be positive"),
    ("seed", {"seed": -1}, "seed = -1 must not be negative"),
    ("schedule", {"optim.schedule": "linear"}, "'linear' must be one of cosine, wsd"),
    (
        "too short for wsd",
        {"optim.schedule": "wsd", "optim.warmup_iters": 10, "optim.wsd_decay_iters": 11},
        r"warmup_iters \+ optim.wsd_decay_iters = 21 exceed train.max_iters = 20",
    ),
    (
        "samples of nothing",
        {"sample.interval": 5, "sample.prompts": ()},
        "sample.interval = 5 needs sample.prompts",
    ),
    ("a folder's address", {"data.cache_dir": "file:///mnt"}, "must be a path .* without file:"),
    ("no path", {"eval.benchmarks": ("",)}, "eval.benchmarks names an empty path"),
    ("no pairs", {"train.row_lengths": (5, 16)}, "must be pairs of a step and the length"),
    ("no length", {"train.row_lengths": ((5, 0),)}, "must be pairs of a step and the length"),
    ("half a step", {"train.row_lengths": ((5.5, 16),)}, "must be pairs of a step and the length"),
    ("steps back", {"train.row_lengths": ((5, 8), (5, 16))}, r"the steps \[5, 5\], .* increase"),
    ("no cut", {"train.row_lengths": ((5, 24),)}, "24 must divide model.block_size = 32"),
    ("above 1", {"train.later_tokens": (1.5,), "train.later_tokens_iters": 5}, "from 0 to 1"),
    ("many", {"train.later_tokens": (0.1,) * 9, "train.later_tokens_iters": 5}, "at most 8"),
    ("for ever", {"train.later_tokens": (0.5,)}, "needs train.later_tokens_iters"),
    ("fall", {"optim.wsd_fall": "cubic"}, "'cubic' must be one of sqrt, linear"),
    ("optimizer", {"optim.optimizer": "sgd"}, "'sgd' must be one of adamw, muon"),
    ("attention", {"model.attention": "flash"}, "one of auto, xla, chunked, cudnn, pallas"),
    ("decay", {"optim.weight_decay_schedule": "cosine"}, "must be one of constant, linear"),
    ("momentum", {"optim.muon_momentum": 1.0}, r"muon_momentum = 1.0 must be in \[0, 1\)"),
    ("average", {"optim.ema_decay": 1.0}, r"ema_decay = 1.0 must be in \[0, 1\)"),
    ("vocab", {"tokenizer.vocab_size": 2**20 + 1}, "vocab_size = 1048577 must be .* 1,048,576"),
    ("no vocab", {"tokenizer.vocab_size": 0}, "vocab_size = 0 must be positive"),
]


def test_every_number_has_a_range():
    defaults = leaves(base.get_config())
    numbers = {key for key, value in defaults.items() if type(value) in (int, float)}
    assert numbers <= CONSTRAINTS.keys() <= defaults.keys()


@pytest.mark.parametrize(("changes", "message"), [r[1:] for r in RULES], ids=[r[0] for r in RULES])
def test_each_rule_is_enforced(changes, message):
    problems = problems_of(changed(changes))
    assert [p for p in problems if re.search(message, p)]
    # One mistake breaks one rule, with two exceptions.
    breaks_two = {"optim.learning_rate", "optim.lr_decay_iters"} & changes.keys()
    assert len(problems) == (2 if breaks_two else 1), problems


def test_devices_must_share_a_batch_and_the_parameters():
    config = debug.get_config()  # a batch of 4
    validate(config, n_devices=4)
    assert "batch_size = 4 must be a multiple of the 3 devices" in problems_of(config, 3)[0]
    config.mesh.fsdp = 2
    validate(config, n_devices=4)
    config.model.loss_chunk = 64  # of the 32 tokens of a device
    assert "must divide the 32 tokens" in problems_of(config, 4)[0]
    config.model.loss_chunk = 0
    config.train.batch_size = 12
    config.mesh.fsdp = 3
    (problem,) = problems_of(config, 4)
    assert "mesh.fsdp = 3 must divide the 4 devices" in problem


def test_limits_are_inclusive_where_they_are_meant_to_be():
    changes = {
        "model.loss_chunk": 64,
        "optim.warmup_iters": 0,
        "optim.min_lr": 1e-2,
        "sample.top_p": 1.0,
        "sample.temperature": 0.0,
        "tokenizer.vocab_size": 2**20,
        "optim.grad_clip": 0.0,
        "optim.schedule": "wsd",
        "optim.wsd_decay_iters": 20,
        "optim.lr_decay_iters": 1,  # not used by wsd
        "checkpoint.keep_best": 0,
    }
    validate(changed(changes), n_devices=1)


def test_all_problems_are_listed_at_once():
    config = changed(
        {
            "model.n_head": 5,
            "model.remat": "everything",
            "optim.min_lr": 1.0,
            "train.max_iters": 0,
            "model.loss_chunk": 7,
        }
    )
    config.model.n_hed = 4  # a sixth: a key that base.py lacks
    problems = problems_of(config)
    assert len(problems) == 6
    for words in ("n_head = 5", "'everything'", "min_lr = 1.0", "max_iters = 0", "chunk = 7"):
        assert len([p for p in problems if words in p]) == 1, words
    assert "model.n_hed is not a key" in problems[0] and "model.n_head" in problems[0]


def test_splits_smaller_than_a_row_are_refused(debug_config, store):
    config = copy.deepcopy(debug_config)
    n_val, n_train = (store.split(name).n_tokens for name in ("val", "train"))
    config.model.block_size = n_val
    validate_store(config, store)
    config.model.block_size = n_val + 1
    with pytest.raises(UserError, match=f"{n_val:,} tokens of the val split") as error:
        validate_store(config, store)
    assert "train split" not in str(error.value)
    config.model.block_size = n_train + 1
    with pytest.raises(UserError, match=f"(?s){n_train:,} tokens of the train split.*val split"):
        validate_store(config, store)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.learnin_rate", "optim.learning_rate"),
        ("model.n_hed", "model.n_head"),
        ("n_layer", "model.n_layer"),  # without its group
        ("optim.batch_size", "train.batch_size"),  # in the wrong group
        ("zzzzzz", None),
    ],
)
def test_an_unknown_key_names_its_nearest_match(key, nearest):
    (problem,) = unknown_keys([key])
    assert problem.startswith(f"{key} is not a key of configs/base.py")
    assert ("did you mean" in problem) == (nearest is not None)
    assert nearest is None or f"(did you mean {nearest}?)" in problem


def test_compute_dtype_follows_the_backend(monkeypatch):
    config = base.get_config()
    assert compute_dtype(config) == "float32"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compute_dtype(config) == "bfloat16"
    config.model.compute_dtype = "float32"
    assert compute_dtype(config) == "float32"
