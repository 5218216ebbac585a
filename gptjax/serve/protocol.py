"""What a request to OpenAI's `/v1/completions` asks for: its JSON body, checked.

Requests follow https://platform.openai.com/docs/api-reference/completions. What a model of ours
cannot honour is refused with a message, never ignored.
"""

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

from data_pipeline.tokenizer import Tokenizer
from gptjax.inference.sampler import Sampling

N_TOP = 5  # OpenAI's most; always computed, so that one compiled program serves every request
MAX_ROWS = 16  # prompts x n of one request
_MAX_STOP = 4

# Parameters that change nothing at these values, and are refused at others.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "suffix": (None, ""),
}


class APIError(Exception):
    """What OpenAI's clients read: a status and a JSON object `error`."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        type: str = "invalid_request_error",
    ):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": type, "param": param, "code": code}}


@dataclasses.dataclass(frozen=True)
class Completion:
    """A request that can be answered. Rows are all prompts, each `n` times in a row."""

    texts: list[str]  # of each row's prompt
    rows: list[list[int]]  # token ids of the same
    seeds: list[int]
    n: int
    sampling: Sampling
    stop: tuple[str, ...]
    logprobs: int | None  # alternatives reported for each token; None: no log-probabilities
    echo: bool
    stream: bool
    include_usage: bool

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each counted once; a text's BOS counts, too."""
        return sum(len(row) for row in self.rows[:: self.n])


def parse(body: Any, *, tokenizer: Tokenizer, block_size: int, model_name: str) -> Completion:
    """Checks the JSON body of a request.

    Args:
        body: anything that JSON can hold.
        tokenizer: of the model.
        block_size: tokens of the model's window; prompt and completion must fit.
        model_name: the one model there is.

    Raises:
        APIError: naming the parameter that is wrong.
    """
    if not isinstance(body, Mapping):
        raise APIError("The body must be a JSON object.")
    for name in body:
        if name not in _KNOWN:
            raise APIError(f"Unrecognized request argument supplied: {name}", param=name)
    for name, values in _NEUTRAL.items():
        if body.get(name) not in values:
            raise APIError(f"{name} is not supported: leave it out.", param=name)
    if body.get("model") not in (None, model_name):
        message = f"The model {body['model']!r} does not exist. Here is: {model_name!r}."
        raise APIError(message, status=404, param="model", code="model_not_found")

    n = _number(body, "n", 1, int, 1, MAX_ROWS)
    texts, rows = _prompts(body.get("prompt"), tokenizer)
    if len(rows) * n > MAX_ROWS:
        raise APIError(f"{len(rows)} prompts x n = {n}: at most {MAX_ROWS} texts.", param="n")
    max_tokens = _number(body, "max_tokens", 16, int, 0, 2**31)
    longest = max(map(len, rows))
    if longest + max_tokens > block_size:
        raise APIError(
            f"This model's maximum context length is {block_size} tokens, however you requested "
            f"{longest + max_tokens} tokens ({longest} in your prompt; {max_tokens} for the "
            f"completion). Please reduce your prompt; or completion length.",
            param="max_tokens",
            code="context_length_exceeded",
        )
    logprobs = body.get("logprobs")
    if logprobs is not None:
        logprobs = _number(body, "logprobs", 0, int, 0, N_TOP)
    stream = _flag(body, "stream")
    options = body.get("stream_options")
    if options is not None and not (stream and isinstance(options, Mapping)):
        raise APIError("stream_options is an object, and goes with stream.", param="stream_options")
    seed = _number(body, "seed", secrets.randbits(32), int, -(2**63), 2**64)
    sampling = Sampling(
        max_new_tokens=max_tokens,
        temperature=_number(body, "temperature", 1.0, float, 0, 2),
        top_k=0,
        top_p=max(_number(body, "top_p", 1.0, float, 0, 1), 1e-6),  # 0: the most likely token
    )
    return Completion(
        texts=[text for text in texts for _ in range(n)],
        rows=[row for row in rows for _ in range(n)],
        seeds=[seed + i for _ in rows for i in range(n)],
        n=n,
        sampling=sampling,
        stop=_stop(body.get("stop")),
        logprobs=logprobs,
        echo=_flag(body, "echo"),
        stream=stream,
        include_usage=_flag(options or {}, "include_usage"),
    )


_KNOWN = {
    *_NEUTRAL,
    *("model", "prompt", "max_tokens", "temperature", "top_p", "n", "stream", "stream_options"),
    *("logprobs", "echo", "stop", "seed", "user"),
}


def _number(
    body: Mapping[str, Any], name: str, default: Any, kind: type, least: float, most: float
) -> Any:
    value = body.get(name)
    if value is None:
        return default
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not least <= value <= most or (kind is int and value != int(value)):
        what = "an integer" if kind is int else "a number"
        raise APIError(f"{name} must be {what} from {least} to {most}, not {value!r}.", param=name)
    return kind(value)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, False, True) or isinstance(value, int) and not isinstance(value, bool):
        raise APIError(f"{name} must be true or false, not {value!r}.", param=name)
    return bool(value)


def _stop(value: Any) -> tuple[str, ...]:
    stop = [] if value is None else [value] if isinstance(value, str) else value
    strings = isinstance(stop, list) and all(isinstance(s, str) and s for s in stop)
    if not strings or len(stop) > _MAX_STOP:
        raise APIError(
            f"stop must be a string or at most {_MAX_STOP} strings, none of them empty.",
            param="stop",
        )
    return tuple(stop)


def _prompts(value: Any, tokenizer: Tokenizer) -> tuple[list[str], list[list[int]]]:
    """Returns texts and token ids of a prompt in any of its four forms."""

    def is_ids(x: Any) -> bool:
        return (
            isinstance(x, list)
            and bool(x)
            and all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in x)
        )

    if value is None or isinstance(value, str) or is_ids(value):
        value = [value or ""]
    if not isinstance(value, list) or not value:
        value = [None]
    texts, rows = [], []
    for prompt in value:
        if isinstance(prompt, str):
            try:
                ids = tokenizer.encode(prompt).tolist()
            except UnicodeEncodeError as e:
                raise APIError(
                    "prompt holds a lone surrogate, which is no text.", param="prompt"
                ) from e
            texts.append(prompt)
            rows.append([tokenizer.bos_id, *ids])
        elif is_ids(prompt):
            texts.append(tokenizer.decode(prompt))
            rows.append(list(prompt))
        else:
            raise APIError(
                "prompt must be a string, a list of strings, a list of token ids below "
                f"{tokenizer.vocab_size}, or a list of such lists.",
                param="prompt",
            )
    return texts, rows
