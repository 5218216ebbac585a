"""The user's recipe in small, which the sweeps of this folder start from.

configs/rtx4070.py with every number that does not depend on size, and what does made smaller by a
rule: heads stay 64 wide, the warm-up stays 0.8 % of the steps, the cosine ends with the run, and a
step has as many rows as make a thousand steps of the budget.
"""

from ml_collections import ConfigDict

from configs import rtx4070


def recipe(*, tokens: int, n_embd: int = 128) -> ConfigDict:
    """Returns the recipe for a model of 4 layers that reads `tokens`, on a CPU.

    Args:
        tokens: of the whole run.
        n_embd: a multiple of 64.
    """
    config = rtx4070.get_config()
    config.data.source = "../shared/data/bench.parquet"  # not in the repo; any English shard serves
    config.data.val_fraction = 0.05
    config.tokenizer.vocab_size = 4096
    config.model.block_size = 256
    config.model.n_layer = 4
    config.model.n_head = n_embd // 64
    config.model.n_embd = n_embd
    config.model.compute_dtype = "float32"
    config.model.remat = "none"
    config.model.scan_unroll = 4
    config.train.batch_size = 8
    config.train.gradient_accumulation_steps = 1
    config.train.log_interval = 50
    config.train.max_passes = 1000.0
    config.eval.eval_iters = 64
    config.sample.prompts = ()
    config.log.tensorboard = False
    set_tokens(config, tokens)
    return config


def set_tokens(config: ConfigDict, tokens: int) -> None:
    """Makes the run read `tokens`, and its schedules end with it."""
    train, optim = config.train, config.optim
    rows = train.batch_size * train.gradient_accumulation_steps
    train.max_iters = tokens // (rows * config.model.block_size)
    optim.lr_decay_iters = train.max_iters
    optim.warmup_iters = max(train.max_iters * 8 // 1000, 1)
    optim.decay_iters = train.max_iters // 5
    config.eval.eval_interval = max(train.max_iters // 10, 1)
