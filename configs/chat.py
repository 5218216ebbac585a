"""Tunes the model of a workdir, trained or imported, on conversations: it learns to answer.

Run `gptjax train chat:runs/quickstart`, with your own conversations by `workdir=runs/mine
data.source=FILE.jsonl`; then `gptjax chat runs/quickstart-chat`.

The model has the shape and the window of the workdir's. The rest is for a few thousand
conversations; raise train.max_iters with their number: the plan shows how often each is read.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import base, workdir


def get_config(run: str) -> ConfigDict:
    """Returns the configuration that tunes the model of the workdir `run`."""
    config, saved = base.get_config(), workdir.get_config(run)
    config.model.update(saved.model)
    config.tokenizer.vocab_size = saved.tokenizer.vocab_size  # for the plan; it gets the markers
    config.model.attention = "auto"  # cudnn knows no document mask
    config.workdir = f"{run.rstrip('/')}-chat"
    config.init_from = run
    config.tokenizer.file = str(Path(run, "tokenizer.model"))
    config.data.source = "data_pipeline/shard/conversations.jsonl"
    config.data.messages_column = "messages"
    config.data.document_mask = True
    config.data.val_fraction = 0.1
    config.optim.learning_rate = 1e-3
    config.optim.min_lr = 1e-5
    config.optim.warmup_iters = 10
    config.optim.lr_decay_iters = 120
    config.optim.wsd_decay_iters = 30
    config.train.batch_size = 8
    config.train.gradient_accumulation_steps = 1
    config.train.max_iters = 120
    config.train.log_interval = 10
    config.train.max_epochs = 16.0
    config.eval.eval_interval = 40
    config.sample.prompts = ("What is the capital of France?", "What is a database?")
    config.sample.max_new_tokens = 60
    config.sample.temperature = 0.0
    return config
