"""Answers in the JSON of OpenAI's two endpoints: in one piece, or chunk by chunk."""

import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

from gptjax.serve.completions import CompletionChunk, Token
from gptjax.serve.protocol import Completion


class Answer(Protocol):
    """The form of the answers to a request, with their common keys."""

    whole: dict[str, Any]
    event: dict[str, Any]  # keys of each event of a stream

    def choice(self, chunks: Sequence[CompletionChunk]) -> dict[str, Any]:
        """Returns all chunks of a choice in one piece."""

    def part(self, chunk: CompletionChunk) -> dict[str, Any]:
        """Returns the next chunk of a choice in a stream."""


class TextAnswer:
    """That of `/v1/completions`."""

    def __init__(self, completion: Completion, model_name: str):
        self._scored = completion.parameters.logprobs is not None
        self.whole = self.event = _keys("cmpl", "text_completion", model_name)

    def choice(self, chunks: Sequence[CompletionChunk]) -> dict[str, Any]:
        """See `Answer`."""
        tokens = [token for chunk in chunks for token in chunk.tokens]
        scores = {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [token.top for token in tokens],
            "text_offset": [token.offset for token in tokens],
        }
        return {
            "index": chunks[0].choice,
            "text": "".join(chunk.text for chunk in chunks),
            "logprobs": scores if self._scored else None,
            "finish_reason": chunks[-1].finish_reason,
        }

    def part(self, chunk: CompletionChunk) -> dict[str, Any]:
        """See `Answer`."""
        return self.choice([chunk])


class ChatAnswer:
    """That of `/v1/chat/completions`."""

    def __init__(self, completion: Completion, model_name: str):
        self._scored = completion.parameters.logprobs is not None
        self._begun: set[int] = set()  # choices of a stream
        self.whole = _keys("chatcmpl", "chat.completion", model_name)
        self.event = {**self.whole, "object": "chat.completion.chunk"}

    def choice(self, chunks: Sequence[CompletionChunk]) -> dict[str, Any]:
        """See `Answer`."""
        content = "".join(chunk.text for chunk in chunks)
        message = {"role": "assistant", "content": content, "refusal": None}
        return self._choice(chunks, message=message)

    def part(self, chunk: CompletionChunk) -> dict[str, Any]:
        """See `Answer`; the first one of a choice has the role."""
        role = {} if chunk.choice in self._begun else {"role": "assistant"}
        self._begun.add(chunk.choice)
        return self._choice([chunk], delta={**role, "content": chunk.text})

    def _choice(self, chunks: Sequence[CompletionChunk], **text: Any) -> dict[str, Any]:
        tokens = [_scores(token) for chunk in chunks for token in chunk.tokens]
        return {
            "index": chunks[0].choice,
            **text,
            "logprobs": {"content": tokens, "refusal": None} if self._scored else None,
            "finish_reason": chunks[-1].finish_reason,
        }


def _keys(prefix: str, kind: str, model_name: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model_name,
    }


def _scores(token: Token) -> dict[str, Any]:
    """Returns a token as `/v1/chat/completions` scores it; parts of characters have no bytes."""
    top = [{"token": t, "logprob": p, "bytes": None} for t, p in (token.top or {}).items()]
    return {"token": token.text, "logprob": token.logprob, "bytes": None, "top_logprobs": top}
