"""The user's recipe in small, the base of the sweeps in this folder, and the best ones.

configs/rtx4070.py with what depends on size scaled by a rule: heads stay 64 wide, the warm-up stays
0.8 % of the steps, the cosine ends with the run. A step has 2,048 tokens, of the best ones 1,024.
"""

from ml_collections import ConfigDict

from configs import modern, rtx4070

STEP = 2048  # tokens


def recipe(*, tokens: int, passes: int) -> ConfigDict:
    """Returns the recipe for a model of 4 x 128 and so many passes over `tokens`, on a CPU.

    Validation is on whole files that are not trained on.
    """
    config = rtx4070.get_config()
    config.allow_cpu = True
    config.data.source = "../shared/data/bench.parquet"  # not in the repo; any English shard serves
    config.data.split_by = "file_path"
    config.data.val_fraction = 0.05
    config.data.max_train_tokens = tokens
    config.tokenizer.vocab_size = 2048
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
    set_steps(config, passes * tokens // STEP)
    return config


def slice_of(number: int) -> dict[str, object]:
    """Returns what makes the training tokens another random slice, and most validation files new.

    A slice is the first documents in a random order, which depends on how many there are.
    """
    return {"data.val_fraction": 0.05 + 0.1 * number}


def set_steps(config: ConfigDict, steps: int, *, evaluations: int = 4) -> None:
    """Sets the length of a run and of its schedules, and how often it is evaluated.

    A crossing of two curves is known to 1 / `evaluations` of the run.
    """
    optim = config.optim
    config.train.max_iters = steps
    optim.lr_decay_iters = steps
    optim.warmup_iters = max(steps * 8 // 1000, 1)
    optim.wsd_decay_iters = steps // 5
    config.eval.eval_interval = max(steps // evaluations, 1)


def tiny(config: ConfigDict, *, width: int) -> None:
    """Sets a width, with heads of 16 to 24, and a vocabulary that is small beside the blocks."""
    config.model.n_embd, config.model.n_head = width, width // 16
    config.tokenizer.vocab_size = 512


def modern_adamw(config: ConfigDict) -> None:
    """Changes the recipe to the modern shape, with a warm-up of 5 %."""
    modern.apply(config)
    config.optim.warmup_iters = max(config.train.max_iters // 20, 1)


def before(config: ConfigDict) -> None:
    """Changes the recipe to the best one of 2026-11-24: the modern shape, and Muon."""
    modern_adamw(config)
    config.optim.optimizer = "muon"
    config.optim.learning_rate = 2.4e-3  # of the embeddings, which AdamW keeps
    config.optim.muon_learning_rate = 2.4e-3  # 5 times the root mean square of an update


def untied(config: ConfigDict, *, muon: float = 0.006) -> None:
    """Changes the recipe to one with a head of its own and half the rows in twice the steps.

    `muon` is Muon's rate in spectral norm; the rates fall over the last 60 % of the steps.
    """
    before(config)
    config.model.tie_embeddings = False
    optim, train = config.optim, config.train
    optim.muon_scale, optim.muon_learning_rate, optim.muon_momentum = "spectral", muon, 0.9
    optim.learning_rate, optim.head_learning_rate = 0.02, 0.005
    optim.schedule, optim.min_lr = "wsd", 0.0
    train.batch_size //= 2
    train.max_iters *= 2
    config.eval.eval_interval *= 2
    config.eval.eval_iters *= 2
    optim.lr_decay_iters = train.max_iters
    optim.warmup_iters = max(train.max_iters // 20, 1)
    optim.wsd_decay_iters = train.max_iters * 6 // 10


def best(config: ConfigDict, *, muon: float = 0.012) -> None:
    """Changes the recipe to the best one: short rows and later tokens first, a fall in a line.

    `muon` is Muon's rate in spectral norm; the rates fall over the last 80 % of the steps. The
    first half has rows of 32 to 128 tokens, the first third a loss on later tokens.
    """
    untied(config, muon=muon)
    optim, train = config.optim, config.train
    optim.beta1 = 0.8
    optim.wsd_fall, optim.wsd_decay_iters = "linear", train.max_iters * 8 // 10
    lengths = {32: 0.1, 64: 0.25, 128: 0.5}
    train.row_lengths = tuple((round(part * train.max_iters), n) for n, part in lengths.items())
    train.later_tokens, train.later_tokens_iters = (0.5, 0.25), train.max_iters // 3
