"""A run in Python: `run = gptjax.load("runs/quickstart")`, then sample, score, evaluate."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.errors import UserError
from gptjax.common.workdir import read_metrics
from gptjax.evaluate.text_loss import Texts, evaluate_documents
from gptjax.inference import LoadedModel, Sampler, Sampling, continue_texts, load_run
from gptjax.model import count_params, hidden_states, logits


class Run:
    """The best checkpoint of a workdir, by val loss, on one device.

    Attributes:
        config: the run's configuration (a ConfigDict).
        model_config: the model's shape (GPTConfig).
        params: nested dict of float32 arrays.
        tokenizer: encodes text to ids and back.
        step: optimizer steps behind the parameters.
    """

    def __init__(self, workdir: Path, model: LoadedModel):
        self.workdir = workdir
        self.config, self.model_config, self.params, self.tokenizer, self.step = model
        self._model = model

    def __repr__(self) -> str:
        return f"<Run {self.workdir}, step {self.step:,}, {self.n_params:,} parameters>"

    @functools.cached_property
    def _sampler(self) -> Sampler:
        return Sampler(self.model_config, self.params)

    @property
    def n_params(self) -> int:
        """Number of parameters, embeddings included."""
        return count_params(self.model_config)[0]

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl: `step`, `time` and values by name."""
        return read_metrics(self.workdir)[0]

    def logits(self, text: str) -> np.ndarray:
        """Returns float32 logits_TV of the token after each of BOS and the tokens of `text`.

        Raises:
            UserError: if that is more than the model's block_size.
        """
        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(text).tolist()]
        if len(ids) > self.model_config.block_size:
            raise UserError(
                f"the text has {len(ids):,} tokens with BOS, and the model sees "
                f"{self.model_config.block_size:,} (block_size): shorten it."
            )
        tokens_BT = jnp.array([ids], jnp.int32)
        x_BTD = hidden_states(self.model_config, self.params, tokens_BT)
        return np.asarray(jax.device_get(logits(self.model_config, self.params, x_BTD)[0]))

    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 200,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> str:
        """Returns `prompt` and its continuation; the same seed gives the same text.

        An empty prompt begins a new document. The text ends at its BOS, or before the first of the
        strings `stop`. The other parameters are those of `Sampling`.
        """
        sampling = Sampling(
            max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p
        )
        pieces = continue_texts(
            self._sampler, self.tokenizer, [prompt], sampling, seeds=[seed], stop=stop
        )
        return prompt + "".join(piece for _, piece in pieces)

    def evaluate(self, texts: Sequence[str]) -> dict[str, Any]:
        """Returns `loss` (nats per token), `perplexity`, `bits_per_byte` over documents.

        Each with its standard error over documents; see `evaluate_documents`.
        """
        if isinstance(texts, str) or not any(texts):
            raise UserError("evaluate takes a list of texts, at least one of them not empty.")
        documents = Texts((text.encode() for text in texts), self.tokenizer)
        return evaluate_documents(self._model, documents)


def load(workdir: str | os.PathLike[str]) -> Run:
    """Opens the workdir of a run, finished or not; nothing is written.

    Raises:
        UserError: if it is no workdir or holds no good checkpoint.
    """
    path = Path(workdir).expanduser()
    return Run(path, load_run(path))
