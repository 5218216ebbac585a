"""What a finished run left: its configuration, its tokenizer and its best parameters."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from data_pipeline.token_store import TOKENIZER
from data_pipeline.tokenizer import Tokenizer
from gptjax import checkpoint, model
from gptjax import config as config_lib
from gptjax.model import GPTConfig


class Run(NamedTuple):
    """A model with what is needed to use it."""

    config: ConfigDict
    gpt: GPTConfig
    params: Any
    tokenizer: Tokenizer
    step: int  # optimizer updates behind the parameters


def load_run(workdir: Path) -> Run:
    """Returns the best checkpoint of a run, by val loss, or else the newest, on one device.

    Raises:
        UserError: if the folder is no workdir or holds no checkpoint.
    """
    config = config_lib.load(workdir)
    tokenizer = Tokenizer.load(workdir / TOKENIZER)
    gpt = GPTConfig.from_config(config, tokenizer.vocab_size)
    shapes = jax.eval_shape(lambda: model.init(gpt, jax.random.key(0)))
    params, step = checkpoint.restore_params(workdir, shapes)
    return Run(config, gpt, params, tokenizer, step)
