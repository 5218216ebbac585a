"""The JSON body of a request to OpenAI's `/v1/chat/completions`, validated.

See https://platform.openai.com/docs/api-reference/chat. As in `protocol`, what the model cannot
honour is refused.
"""

from typing import Any

from pydantic import Field

from data_pipeline.chat import SYSTEM, USER, Chat, Message, messages_of, problem
from data_pipeline.tokenizer import Tokenizer
from gptjax.serve import protocol
from gptjax.serve.errors import APIError
from gptjax.serve.protocol import N_TOP, Common, Completion, Integer, Parameters, number

_KEYS = {"role", "content"}


class ChatParameters(Common):
    """Those of a request to answer a conversation."""

    messages: list[dict[str, Any]] = Field(
        description="must be a list of messages, objects with role and content", min_length=1
    )
    max_tokens: Integer | None = number(None, 1, 2**31)
    max_completion_tokens: Integer | None = number(None, 1, 2**31)  # its newer name
    logprobs: bool = Field(False, description="must be true or false")
    top_logprobs: Integer = number(0, 0, N_TOP)


def parse(body: Any, *, tokenizer: Tokenizer, block_size: int, model_name: str) -> Completion:
    """Validates a decoded JSON body; raises APIError that names the first wrong parameter.

    Without a maximum, the answer can fill the model's window.
    """
    if isinstance(body, dict) and body.get("messages") is None:
        raise APIError("messages is missing: it is the conversation so far.", param="messages")
    given = protocol.validated(body, ChatParameters, model_name)
    row = Chat(tokenizer).prompt(_messages(given.messages))
    maximum = given.max_completion_tokens or given.max_tokens
    protocol.check_length(len(row), maximum or 1, block_size, "messages")
    if given.top_logprobs and not given.logprobs:
        raise APIError("top_logprobs needs logprobs = true.", param="top_logprobs")
    shared: dict[str, Any] = {name: getattr(given, name) for name in Common.model_fields}
    shared["logprobs"] = given.top_logprobs if given.logprobs else None
    parameters = Parameters(**shared, max_tokens=maximum or block_size - len(row))
    n = given.n
    return Completion(
        parameters,
        texts=[""] * n,
        prompts=[row] * n,
        rows=[row] * n,
        seeds=protocol.seeds_of(given),
    )


def _messages(given: list[dict[str, Any]]) -> list[Message]:
    """Returns the messages; OpenAI's content in parts becomes a text, "developer" is "system"."""
    messages: list[dict[str, Any]] = []
    for i, message in enumerate(given):
        role, content = message.get("role"), message.get("content")
        if other := [name for name, value in message.items() if name not in _KEYS and value]:
            raise APIError(f"messages[{i}].{other[0]:.100} is not supported.", param="messages")
        if isinstance(content, list):
            parts = [part for part in content if isinstance(part, dict)]
            texts = [part.get("text") for part in parts if part.get("type") == "text"]
            if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
                raise APIError(
                    f"messages[{i}].content has parts that are no text.", param="messages"
                )
            content = "".join(map(str, texts))
        role = SYSTEM if role == "developer" else role
        messages.append({"role": role, "content": content})
    wrong = problem(messages)
    if not wrong and messages[-1]["role"] != USER:
        wrong = f"messages[{len(messages) - 1}].role must be {USER!r}: the assistant answers it"
    try:
        for message in messages if not wrong else ():
            protocol.encodable(message["content"])
    except ValueError:
        wrong = "messages have a lone surrogate, which is no text"
    if wrong:
        raise APIError(f"{wrong}.", param="messages")
    return messages_of(messages)
