"""Seconds on a CPU: every part of a run at its smallest, for tests and for stepping through.

Run `gptjax train debug`; with JAX_DISABLE_JIT=True in front of it,
arrays can be printed and a debugger sees their values.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns a GPT-2-shaped model of 2 layers x 32 on the bundled shard, for 20 steps."""
    config = base.get_config()
    config.workdir = "runs/debug"
    config.allow_cpu = True
    config.data.source = "data_pipeline/shard/quickstart.parquet"
    config.data.val_fraction = 0.05
    config.tokenizer.vocab_size = 512
    config.tokenizer.sample_bytes = 200_000
    config.model.block_size = 32
    config.model.n_layer = 2
    config.model.n_head = 2
    config.model.n_embd = 32
    config.optim.learning_rate = 1e-2
    config.optim.min_lr = 3e-4
    config.optim.warmup_iters = 2
    config.optim.lr_decay_iters = 20
    config.optim.wsd_decay_iters = 5
    config.train.batch_size = 4
    config.train.gradient_accumulation_steps = 2
    config.train.max_iters = 20
    config.train.log_interval = 5
    config.eval.eval_interval = 10
    config.eval.eval_iters = 2
    config.sample.max_new_tokens = 8
    config.log.tensorboard = False
    return config
