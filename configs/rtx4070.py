"""The five-day recipe: GPT of 12 x 512 on one FineWeb shard, one RTX 4070 (12 GB).

Run `gptjax train rtx4070`.

The numbers are the recipe's own, one for one. The plan printed before the first step has what they
amount to on your data: parameters, tokens, passes over the shard, time.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.validate import leaves

# What the recipe is often recommended with; the plan prints the computed figures beside it.
CLAIMS: dict[str, Any] = {
    "n_params": 110_000_000,
    "source_tokens": 6_500_000_000,  # in the whole source
    "passes": 15.0,  # over the training split
    "steps_per_sec": (22.0, 26.0),  # optimizer steps: lowest and highest
    "days": 5.0,  # of training
    "fitting_batch_size": 12,  # in the memory of the card
}
EXPECTED_TOKENS = 730_000_000  # of the default data.source, one FineWeb file of 2.15 GB
_CLAIMED_OF = """
    model.block_size model.n_layer model.n_head model.n_kv_head model.n_embd model.norm
    model.position model.mlp model.mlp_dim model.tie_embeddings model.bias tokenizer.vocab_size
    train.batch_size train.gradient_accumulation_steps train.max_iters
""".split()


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_config()
    config.workdir = "runs/rtx4070"

    config.eval.eval_interval = 500
    config.eval.eval_iters = 200
    config.train.log_interval = 50
    config.checkpoint.always_save_checkpoint = True

    config.train.batch_size = 12
    config.train.gradient_accumulation_steps = 40
    config.model.block_size = 1024

    config.model.n_layer = 12
    config.model.n_head = 8
    config.model.n_embd = 512
    config.model.dropout = 0.0
    config.model.bias = False

    config.optim.learning_rate = 6e-4
    config.train.max_iters = 250_000
    config.optim.warmup_iters = 2000
    config.optim.lr_decay_iters = 250_000
    config.optim.min_lr = 6e-5
    config.optim.beta2 = 0.99
    config.optim.weight_decay = 0.1
    config.optim.grad_clip = 1.0

    config.tokenizer.vocab_size = 32_768
    config.model.compute_dtype = "bfloat16"
    # Not in the recipe. Compiled for the card with cuDNN's attention: 4.55 of 8.99 GiB, and an
    # optimizer step moves 1,318 GB. Layers in a loop (scan_unroll 1) write what they keep into
    # stacks: 1,561 GB, compiled in half the time. remat "none": 5.59 GiB and 1,327 GB; on an H200
    # 3 % faster. If memory is short, loss_chunk 6,144: 3.90 GiB and 1,344 GB.
    config.model.attention = "auto"
    config.model.remat = "dots"
    config.model.scan_unroll = 12
    config.model.loss_chunk = 0
    return config


def claims_of(config: ConfigDict) -> dict[str, Any]:
    """Returns CLAIMS if `config` has the recipe's model shape, batch and max_iters, else {}."""
    values, recipe = leaves(config), leaves(get_config())
    return CLAIMS if all(values[key] == recipe[key] for key in _CLAIMED_OF) else {}
