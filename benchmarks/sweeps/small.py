"""The user's recipe in small, the base of the sweeps in this folder, and the best one.

configs/rtx4070.py with what depends on size scaled by a rule: heads stay 64 wide, the warm-up stays
0.8 % of the steps, the cosine ends with the run. A step has 2,048 tokens.
"""

from ml_collections import ConfigDict

from configs import modern, rtx4070

BEST_RATE = 2.4e-3  # rates.py


def recipe(*, tokens: int) -> ConfigDict:
    """Returns the recipe for a model of 4 x 128 that reads `tokens` in all, on a CPU."""
    config = rtx4070.get_config()
    config.allow_cpu = True
    config.data.source = "../shared/data/bench.parquet"  # not in the repo; any English shard serves
    config.data.val_fraction = 0.05
    config.tokenizer.vocab_size = 4096
    config.model.block_size = 256
    config.model.n_layer = 4
    config.model.n_head = 2
    config.model.n_embd = 128
    config.model.compute_dtype = "float32"
    config.model.remat = "none"
    config.model.scan_unroll = 4
    config.train.batch_size = 8
    config.train.gradient_accumulation_steps = 1
    config.train.log_interval = 50
    config.eval.eval_iters = 64
    set_tokens(config, tokens)
    return config


def repeated(*, tokens: int, passes: int) -> ConfigDict:
    """Returns the recipe with 2,048 pieces for so many passes over a slice of `tokens`."""
    config = recipe(tokens=passes * tokens)
    config.tokenizer.vocab_size = 2048
    config.data.max_train_tokens = tokens
    return config


def best(config: ConfigDict) -> None:
    """Changes the recipe to the best one: the modern shape, Muon, a warm-up of 5 %."""
    modern.apply(config)
    optim = config.optim
    optim.optimizer = "muon"
    optim.learning_rate = BEST_RATE  # of the embeddings, which AdamW keeps
    optim.muon_learning_rate = BEST_RATE
    optim.warmup_iters = max(config.train.max_iters // 20, 1)


def set_tokens(config: ConfigDict, tokens: int) -> None:
    """Sets the length of the run and of its schedules to `tokens`."""
    train, optim = config.train, config.optim
    rows = train.batch_size * train.gradient_accumulation_steps
    train.max_iters = tokens // (rows * config.model.block_size)
    optim.lr_decay_iters = train.max_iters
    optim.warmup_iters = max(train.max_iters * 8 // 1000, 1)
    optim.wsd_decay_iters = train.max_iters // 5
    config.eval.eval_interval = max(train.max_iters // 10, 1)
