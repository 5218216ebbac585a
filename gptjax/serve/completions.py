"""Answers to requests for completions, without the HTTP: text, piece by piece, and its odds."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from data_pipeline.tokenizer import StreamDecoder, Tokenizer
from gptjax.inference import scoring
from gptjax.inference.generation import TextStream
from gptjax.inference.sampler import Sampler
from gptjax.serve.protocol import N_TOP, Completion


class Token(NamedTuple):
    """A token, drawn or echoed, and how likely it was."""

    text: str
    offset: int  # characters of the answer before it
    logprob: float | None  # None: nothing stands before it
    top: dict[str, float] | None  # the most likely tokens at its place, as text


@dataclasses.dataclass(frozen=True)
class Piece:
    """A further part of one choice."""

    index: int
    text: str
    tokens: list[Token]
    finish_reason: str | None  # "stop": a stop string or the document's end; "length"; or not yet


class _Row:
    """One choice in the making: tokens are shown with the text that they begin."""

    def __init__(
        self, index: int, tokenizer: Tokenizer, request: Completion, echoed: Sequence[Token]
    ):
        self.n_tokens = 0
        self.finish_reason: str | None = None
        self._index = index
        self._tokenizer = tokenizer
        self._request = request
        self._stream = TextStream(tokenizer, request.stop)
        self._decoder = StreamDecoder(tokenizer)
        self._n_decoded = self._n_shown = 0  # characters
        self._tokens: list[Token] = []  # whose text is not shown yet
        self._text = request.texts[index] if request.echo else ""
        self._echoed = len(self._text)
        self._echoed_tokens = echoed

    def feed(self, token: int, *scores: Any) -> None:
        if self.finish_reason is not None:
            return
        self.n_tokens += 1
        text = self._stream.feed(token)
        if self._request.logprobs is not None:
            offset = self._echoed + self._n_decoded
            self._tokens.append(_token(self._tokenizer, self._request, offset, token, *scores))
            self._n_decoded += len(self._decoder.feed([token]))
        if self._stream.ended:
            self.finish_reason = "stop"
        elif self.n_tokens == self._request.sampling.max_new_tokens:
            self.finish_reason = "length"
            text += self._stream.flush()
        self._text += text
        self._n_shown += len(text)

    def piece(self) -> Piece | None:
        """Returns what has come to be shown since the last call."""
        shown = self._echoed + self._n_shown
        everything = self.finish_reason == "length"
        tokens = [token for token in self._tokens if everything or token.offset < shown]
        self._tokens = self._tokens[len(tokens) :]
        tokens, self._echoed_tokens = [*self._echoed_tokens, *tokens], ()
        text, self._text = self._text, ""
        if text or tokens or self.finish_reason:
            return Piece(self._index, text, tokens, self.finish_reason)
        return None


def complete(
    sampler: Sampler, tokenizer: Tokenizer, request: Completion, used: dict[str, int]
) -> Iterator[list[Piece]]:
    """Answers a request, piece by piece; the last piece of each choice has a finish_reason.

    Args:
        sampler: the model.
        tokenizer: of the model.
        request: from `completion_request.parse`.
        used: is kept up to date with OpenAI's `usage`.
    """
    echoed = _echoed_tokens(sampler, tokenizer, request)
    rows = [_Row(i, tokenizer, request, echoed[i // request.n]) for i in range(len(request.rows))]
    drawing = sampler.draw(request.rows, request.sampling, seeds=request.seeds, n_top=N_TOP)
    for drawn in drawing:
        was_open = [row for row in rows if row.finish_reason is None]
        for i, row in enumerate(rows):
            for token, *scores in zip(*(x[i].tolist() for x in drawn), strict=True):
                row.feed(token, *scores)
        _count(used, request, rows)
        yield [piece for row in was_open if (piece := row.piece())]
        if all(row.finish_reason for row in rows):
            return
    _count(used, request, rows)  # max_tokens = 0: nothing was drawn
    for row in rows:
        row.finish_reason = "length"
    yield [piece for row in rows if (piece := row.piece())]


def _echoed_tokens(
    sampler: Sampler, tokenizer: Tokenizer, request: Completion
) -> Sequence[Sequence[Token]]:
    """Returns the tokens of each prompt, where they were asked for."""
    prompts = request.rows[:: request.n]
    if not request.echo or request.logprobs is None:
        return [()] * len(prompts)
    scores = scoring.prompt_scores(sampler.model_config, sampler.params, prompts, N_TOP)
    found = []
    for prompt, *columns in zip(prompts, *scores, strict=True):
        decoder, offset = StreamDecoder(tokenizer), 0
        tokens: list[Token] = []
        lists = (column[: len(prompt)].tolist() for column in columns)
        for token, *scores_of in zip(prompt, *lists, strict=True):
            tokens.append(_token(tokenizer, request, offset, token, *scores_of))
            offset += len(decoder.feed([token]))
        found.append([tokens[0]._replace(logprob=None, top=None), *tokens[1:]])
    return found


def _token(
    tokenizer: Tokenizer,
    request: Completion,
    offset: int,
    token: int,
    logprob: float,
    top_ids: list[int],
    top_logprobs: list[float],
) -> Token:
    best = zip(top_ids[: request.logprobs], top_logprobs, strict=False)
    top = {name_of(tokenizer, i): p for i, p in best}
    return Token(name_of(tokenizer, token), offset, logprob, top)


def _count(used: dict[str, int], request: Completion, rows: Sequence[_Row]) -> None:
    drawn = sum(row.n_tokens for row in rows)
    used["prompt_tokens"] = request.prompt_tokens
    used["completion_tokens"] = drawn
    used["total_tokens"] = request.prompt_tokens + drawn


def name_of(tokenizer: Tokenizer, token: int) -> str:
    """Returns a token's text, or OpenAI's notation for bytes that are no text by themselves."""
    if token == tokenizer.bos_id:
        return "<|endoftext|>"
    data = tokenizer.decode_bytes([token])
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def logprobs_json(tokens: Sequence[Token]) -> dict[str, Any]:
    """Returns the `logprobs` of a choice."""
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [token.top for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }
