"""The JSON body of a request to OpenAI's `/v1/completions`, validated.

See https://platform.openai.com/docs/api-reference/completions. A parameter that the model cannot
honour is refused, never ignored.
"""

import dataclasses
import reprlib
import secrets
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

from data_pipeline.tokenizer import Tokenizer
from gptjax.inference import Sampling
from gptjax.serve.errors import APIError

N_TOP = 5  # OpenAI's maximum; always computed, so that one compiled program serves every request
MAX_ROWS = 16  # prompts x n of one request


def unknown_model(name: str, served: str) -> APIError:
    """Returns the error of a request for another model than the one that is served."""
    message = f"The model {name!r:.100} does not exist. This server has {served!r}."
    return APIError(message, status=404, param="model", code="model_not_found")


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_list(value: Any) -> Any:
    single = not isinstance(value, list) or (value and isinstance(value[0], int))
    return [value] if single else value


def encodable(text: str) -> str:
    """Returns the text; ValueError: it is none."""
    text.encode()  # a lone surrogate raises UnicodeEncodeError, which is a ValueError
    return text


Integer = Annotated[int, BeforeValidator(_whole)]  # 2.0 is an integer in JSON
_Text = Annotated[str, AfterValidator(encodable)]
_NonEmpty = Annotated[str, Field(min_length=1)]
_NonEmptyList = Field(min_length=1, fail_fast=True)
_TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], _NonEmptyList]
_AsList = BeforeValidator(_as_list)
_UNSUPPORTED = "is not supported: leave it out"


def number(default: Any, least: int, most: int, kind: str = "an integer") -> Any:
    """Returns the field of a number in a range."""
    description = f"must be {kind} from {least} to {most}"
    return Field(default, ge=least, le=most, description=description)


class StreamOptions(pydantic.BaseModel):
    """The parameters of a stream."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None  # the last event but [DONE] counts the tokens


class Common(pydantic.BaseModel):
    """Parameters of any request; a description continues the name to an error message."""

    model_config = pydantic.ConfigDict(strict=True, allow_inf_nan=False)

    model: str | None = Field(None, description="must be the name of a model")
    temperature: float = number(1.0, 0, 2, "a number")
    top_p: float = number(1.0, 0, 1, "a number")
    n: Integer = number(1, 1, MAX_ROWS)
    seed: Integer | None = number(None, -(2**63), 2**64)
    stop: Annotated[list[_NonEmpty], Field(max_length=4, fail_fast=True), _AsList] = Field(
        [], description="must be a string or at most 4 strings, none of them empty"
    )
    stream: bool = Field(False, description="must be true or false")
    stream_options: StreamOptions = Field(
        StreamOptions(),
        description="must be {'include_usage': true} or false, and stream must be true",
    )
    user: Any = None
    # Only values without effect are valid:
    frequency_penalty: float = Field(0, ge=0, le=0, description=_UNSUPPORTED)
    logit_bias: dict[str, Any] = Field({}, max_length=0, description=_UNSUPPORTED)
    presence_penalty: float = Field(0, ge=0, le=0, description=_UNSUPPORTED)


class Parameters(Common):
    """Those of a request to continue texts."""

    prompt: Annotated[list[_Text | _TokenIds], _NonEmptyList, _AsList] = Field(
        [""],
        description="must be a string without lone surrogates, a list of strings, a list of token "
        "ids, or a list of such lists",
    )
    max_tokens: Integer = number(16, 0, 2**31)
    logprobs: Integer | None = number(None, 0, N_TOP)
    echo: bool = Field(False, description="must be true or false")
    # Only values without effect are valid:
    best_of: Integer = Field(1, ge=1, le=1, description=_UNSUPPORTED)
    suffix: str = Field("", max_length=0, description=_UNSUPPORTED)


@dataclasses.dataclass(frozen=True)
class Completion:
    """A request that can be answered. Rows are all prompts, each repeated `parameters.n` times."""

    parameters: Parameters
    texts: list[str]  # the prompt of each row
    prompts: list[list[int]]  # its token ids
    rows: list[list[int]]  # what the model reads: BOS, as before every training document, and these
    seeds: list[int]

    @property
    def sampling(self) -> Sampling:
        """How to draw; top_p = 0 takes the most likely token."""
        return Sampling(
            max_new_tokens=self.parameters.max_tokens,
            temperature=self.parameters.temperature,
            top_k=0,
            top_p=max(self.parameters.top_p, 1e-6),
        )

    def usage(self, n_drawn: int) -> dict[str, int]:
        """Returns OpenAI's `usage`; each prompt is counted once, with its BOS."""
        n_prompt = sum(len(row) for row in self.rows[:: self.parameters.n])
        counts = {"prompt_tokens": n_prompt, "completion_tokens": n_drawn}
        return {**counts, "total_tokens": n_prompt + n_drawn}


P = TypeVar("P", bound=Common)


def validated(body: Any, kind: type[P], model_name: str) -> P:
    """Returns the parameters of a decoded JSON body; APIError names the first wrong one."""
    if not isinstance(body, dict):
        raise APIError("The body must be a JSON object.")
    fields = kind.model_fields
    for name in body:
        if name not in fields:
            message = f"Unrecognized request argument supplied: {name:.100}"
            raise APIError(message, param=name[:100])
    given = {name: value for name, value in body.items() if value is not None}
    try:
        parameters = kind.model_validate(given)
    except pydantic.ValidationError as error:
        name = str(error.errors(include_url=False)[0]["loc"][0])
        message = f"{name} {fields[name].description} (given: {reprlib.repr(body[name])})."
        raise APIError(message, param=name) from error
    if parameters.model not in (None, model_name):
        raise unknown_model(parameters.model, model_name)
    if "stream_options" in given and not parameters.stream:
        description = fields["stream_options"].description
        raise APIError(f"stream_options {description}.", param="stream_options")
    return parameters


def parse(body: Any, *, tokenizer: Tokenizer, block_size: int, model_name: str) -> Completion:
    """Validates a decoded JSON body; raises APIError that names the first wrong parameter."""
    parameters = validated(body, Parameters, model_name)
    texts, prompts, rows = [], [], []
    for prompt in parameters.prompt:
        if isinstance(prompt, str):
            text, ids = prompt, tokenizer.encode(prompt).tolist()
        elif max(prompt) < (n_ids := tokenizer.vocab_size):
            text, ids = tokenizer.decode(prompt), prompt
        else:
            message = f"prompt has token id {max(prompt)}: ids must be below {n_ids}."
            raise APIError(message, param="prompt")
        # Ids that leave no room for BOS are a window in the middle of a document.
        has_room = len(ids) + parameters.max_tokens < block_size
        needs_bos = isinstance(prompt, str) or (ids[0] != tokenizer.bos_id and has_room)
        texts.append(text)
        prompts.append(ids)
        rows.append([tokenizer.bos_id, *ids] if needs_bos else ids)
    n = parameters.n
    if len(rows) * n > MAX_ROWS:
        raise APIError(f"{len(rows)} prompts x n = {n}: at most {MAX_ROWS} texts.", param="n")
    check_length(max(map(len, rows)), parameters.max_tokens, block_size, "prompt")
    return Completion(
        parameters,
        texts=[text for text in texts for _ in range(n)],
        prompts=[prompt for prompt in prompts for _ in range(n)],
        rows=[row for row in rows for _ in range(n)],
        seeds=seeds_of(parameters) * len(rows),
    )


def seeds_of(parameters: Common) -> list[int]:
    """Returns the seeds of the `parameters.n` texts of a prompt."""
    seed = secrets.randbits(32) if parameters.seed is None else parameters.seed
    return [seed + i for i in range(parameters.n)]


def check_length(n_prompt: int, max_tokens: int, block_size: int, what: str) -> None:
    """Raises APIError if a prompt and as many tokens are more than the model sees."""
    if n_prompt + max_tokens > block_size:
        raise APIError(
            f"This model's maximum context length is {block_size} tokens, however you requested "
            f"{n_prompt + max_tokens} tokens ({n_prompt} in your {what}; {max_tokens} for the "
            f"completion). Please reduce your {what}; or completion length.",
            param="max_tokens",
            code="context_length_exceeded",
        )
