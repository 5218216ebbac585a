"""The run: build, restore, loop, callbacks."""

from gptjax.train.trainer import train_and_evaluate

__all__ = ["train_and_evaluate"]
