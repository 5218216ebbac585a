"""Loads a trained model, samples from it and scores text with it."""

from gptjax.inference.generation import continue_rows, continue_texts
from gptjax.inference.load import LoadedModel, load_run
from gptjax.inference.sampler import Sampler, Sampling

__all__ = ["LoadedModel", "Sampler", "Sampling", "continue_rows", "continue_texts", "load_run"]
