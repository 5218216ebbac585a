"""Adapter for EleutherAI's lm-evaluation-harness: all its tasks, with its own wording.

    gptjax lm-eval run --model gptjax --model_args workdir=runs/quickstart --tasks hellaswag

Needs the extra `lmeval`. The arguments are those of lm-eval's own command line. The benchmarks of
`gptjax.evaluate` give the same scores, item by item, without lm-eval and without a network.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.cli import call
from configs.errors import UserError
from data_pipeline.progress import BatchProgress
from data_pipeline.tokenizer import Tokenizer
from gptjax.inference import Sampler, Sampling, continue_texts, load_run
from gptjax.inference.scoring import Scorer
from gptjax.model import GPTConfig

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import (
        get_rolling_token_windows,
        make_disjoint_window,
        simple_parse_args_string,
    )
except ImportError as error:
    _MISSING = f"lm-eval cannot be imported ({error}): pip install 'gptjax[lmeval]'."
    if __name__ == "__main__":
        if {"--help", "-h"} & set(sys.argv):  # with lm-eval, its own --help
            print(__doc__, _MISSING, sep="\n")
            sys.exit()
        sys.exit(f"error: {_MISSING}")
    raise UserError(_MISSING) from error

_MAX_GEN_TOKENS = 256  # lm-eval's default


@register_model("gptjax")
class GPTJax(TemplateLM):
    """One model on one device; BOS precedes every context, as it did every training document."""

    def __init__(self, model_config: GPTConfig, params: Any, tokenizer: Tokenizer):
        super().__init__()
        self._tokenizer, self._block_size = tokenizer, model_config.block_size
        self._scorer, self._sampler = Scorer(model_config, params), Sampler(model_config, params)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "GPTJax":
        """Loads the best checkpoint of `arg_dict["workdir"]`.

        Raises:
            UserError: there are other arguments, or the folder holds no checkpoint.
        """
        if set(arg_dict) != {"workdir"}:
            raise UserError("--model gptjax takes only --model_args workdir=FOLDER.")
        run = load_run(Path(arg_dict["workdir"]))
        return cls(run.model_config, run.params, run.tokenizer)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> "GPTJax":
        """Does the same from `workdir=FOLDER`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """BOS, which separates documents."""
        return self._tokenizer.bos_id

    @property
    def max_length(self) -> int:
        """The longest context, in tokens."""
        return self._block_size

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns the ids of a text, after BOS unless `add_special_tokens` is False."""
        ids: list[int] = self._tokenizer.encode(string).tolist()
        return ids if add_special_tokens is False else [self._tokenizer.bos_id, *ids]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        name = None if disable_tqdm else "log-likelihoods"
        scores = self._scorer.score([(c, e) for _, c, e in requests], name)
        return [(score.log_likelihood, score.is_greedy) for score in scores]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns the log-likelihood of whole texts, in windows that overlap as lm-eval's do."""
        windows = [
            (i, make_disjoint_window(window))
            for i, request in enumerate(requests)
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
        ]
        totals = [0.0] * len(requests)
        scores = self._scorer.score([window for _, window in windows])
        for (i, _), score in zip(windows, scores, strict=True):
            totals[i] += score.log_likelihood
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns continuations up to a stop string, the end of the document or `max_gen_toks`."""
        name = None if disable_tqdm else "continuations"
        texts = []
        with BatchProgress(name, "requests", len(requests), len(requests)) as progress:
            for request in requests:
                texts.append(self._generate(*request.args))
                progress.advance(1)
        return texts

    def _generate(self, context: str, settings: Mapping[str, Any]) -> str:
        until = settings.get("until") or []
        stop = [text for text in ([until] if isinstance(until, str) else until) if text]
        sampling = Sampling(
            max_new_tokens=int(settings.get("max_gen_toks", _MAX_GEN_TOKENS)),
            temperature=float(settings.get("temperature", 0.0)),
            top_k=int(settings.get("top_k", 0)),
            top_p=float(settings.get("top_p", 1.0)),
        )
        pieces = continue_texts(
            self._sampler, self._tokenizer, [context], sampling, seeds=[0], stop=stop
        )
        return "".join(piece for _, piece in pieces)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    call(cli_evaluate)
