"""Minutes on two CPU cores: a small GPT on the bundled public-domain shard.

python -m gptjax.main --config=configs/quickstart.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the quickstart."""
    config = base.get_config()
    config.workdir = "runs/quickstart"
    config.data.source = "data_pipeline/shard/quickstart.parquet"
    config.data.val_fraction = 0.05
    config.tokenizer.vocab_size = 4096
    config.model.block_size = 256
    config.model.n_layer = 6
    config.model.n_head = 6
    config.model.n_embd = 192
    config.optim.learning_rate = 3e-3
    config.optim.min_lr = 3e-4
    config.optim.warmup_iters = 50
    config.optim.lr_decay_iters = 600
    config.train.batch_size = 8
    config.train.gradient_accumulation_steps = 1
    config.train.max_iters = 600
    config.train.log_interval = 20
    config.eval.eval_interval = 200
    config.eval.eval_iters = 20
    return config
