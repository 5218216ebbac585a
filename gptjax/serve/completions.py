"""Answers to completion requests, without the HTTP: text in chunks, with log-probabilities."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from data_pipeline.tokenizer import StreamDecoder, Tokenizer
from gptjax.inference import Sampler, scoring
from gptjax.inference.generation import TextStream
from gptjax.serve.protocol import N_TOP, Completion


class Token(NamedTuple):
    """A drawn or echoed token with its log-probability."""

    text: str
    offset: int  # in the characters of the answer
    logprob: float | None  # None for the first token of all, which has no context
    top: dict[str, float] | None  # log-probabilities of the most likely tokens, by text


class CompletionChunk(NamedTuple):
    """The next part of one choice."""

    choice: int  # its index
    text: str
    tokens: Sequence[Token]
    n_drawn: int  # tokens, including those that are not shown
    finish_reason: str | None  # "stop": a stop string or the document's end; or "length"


class _Annotator:
    """Turns consecutive token ids and their scores into `Token`s."""

    def __init__(self, tokenizer: Tokenizer, n_top: int, offset: int):
        self._tokenizer, self._n_top, self._offset = tokenizer, n_top, offset
        self._decoder = StreamDecoder(tokenizer)

    def feed(
        self, token: int, logprob: float, top_ids: list[int], top_logprobs: list[float]
    ) -> Token:
        best = zip(top_ids[: self._n_top], top_logprobs, strict=False)
        top = {name_of(self._tokenizer, i): p for i, p in best}
        offset = self._offset
        self._offset += len(self._decoder.feed([token]))
        return Token(name_of(self._tokenizer, token), offset, logprob, top)


class _Row:
    """One choice: a token is shown together with the text that it begins."""

    def __init__(
        self, index: int, tokenizer: Tokenizer, request: Completion, echoed: Sequence[Token]
    ):
        self.finish_reason: str | None = None
        self._index = index
        self._max_tokens, n_top = request.parameters.max_tokens, request.parameters.logprobs
        self._stream = TextStream(tokenizer, request.parameters.stop)
        self._text = request.texts[index] if request.parameters.echo else ""  # of the next chunk
        self._n_chars = len(self._text)  # shown, with those of the next chunk
        self._annotator = None if n_top is None else _Annotator(tokenizer, n_top, self._n_chars)
        self._echoed, self._tokens = echoed, list[Token]()  # not shown yet
        self._n_drawn = self._n_reported = 0

    def feed(self, token: int, *scores: Any) -> None:
        if self.finish_reason is not None:
            return
        self._n_drawn += 1
        text = self._stream.feed(token)
        if self._annotator is not None:
            self._tokens.append(self._annotator.feed(token, *scores))
        if self._stream.ended:
            self.finish_reason = "stop"
        elif self._n_drawn == self._max_tokens:
            self.finish_reason = "length"
            text += self._stream.flush()
        self._text += text
        self._n_chars += len(text)

    def chunk(self) -> CompletionChunk | None:
        """Returns what can be shown since the last call."""
        complete = self.finish_reason == "length"
        shown = [t for t in self._tokens if complete or t.offset < self._n_chars]
        self._tokens = self._tokens[len(shown) :]
        shown, self._echoed = [*self._echoed, *shown], ()
        text, self._text = self._text, ""
        if not (text or shown or self.finish_reason):
            return None
        n_drawn, self._n_reported = self._n_drawn - self._n_reported, self._n_drawn
        return CompletionChunk(self._index, text, shown, n_drawn, self.finish_reason)


def complete(
    sampler: Sampler, tokenizer: Tokenizer, request: Completion
) -> Iterator[list[CompletionChunk]]:
    """Yields chunks of all choices; the last chunk of each choice has a finish_reason."""
    n = request.parameters.n
    echoed = _echoed_tokens(sampler, tokenizer, request)
    rows = [_Row(i, tokenizer, request, echoed[i // n]) for i in range(len(request.rows))]
    unfinished = rows
    for drawn in sampler.draw(request.rows, request.sampling, seeds=request.seeds, n_top=N_TOP):
        for i, row in enumerate(rows):
            for token, *scores in zip(*(x[i].tolist() for x in drawn), strict=True):
                row.feed(token, *scores)
        yield [chunk for row in unfinished if (chunk := row.chunk())]
        unfinished = [row for row in rows if row.finish_reason is None]
        if not unfinished:
            return
    for row in rows:  # max_tokens = 0: nothing was drawn
        row.finish_reason = "length"
    yield [chunk for row in rows if (chunk := row.chunk())]


def _echoed_tokens(
    sampler: Sampler, tokenizer: Tokenizer, request: Completion
) -> Sequence[Sequence[Token]]:
    """Returns the scored tokens of each prompt, or none where they were not requested."""
    n, n_top = request.parameters.n, request.parameters.logprobs
    prompts, rows = request.prompts[::n], request.rows[::n]
    if not request.parameters.echo or n_top is None:
        return [()] * len(prompts)
    scores = scoring.prompt_scores(sampler.model_config, sampler.params, rows, N_TOP)
    echoed = []
    for prompt, row, (_, *columns) in zip(prompts, rows, scores, strict=True):
        annotator = _Annotator(tokenizer, n_top, 0)
        own = slice(len(row) - len(prompt), len(row))  # clients count the tokens of their prompt
        tokens = list(map(annotator.feed, prompt, *(column[own].tolist() for column in columns)))
        if own.start == 0:
            tokens[0] = tokens[0]._replace(logprob=None, top=None)
        echoed.append(tokens)
    return echoed


def name_of(tokenizer: Tokenizer, token: int) -> str:
    """Returns a token's text; for bytes that are no text by themselves, OpenAI's notation."""
    if token == tokenizer.bos_id:
        return "<|endoftext|>"
    if token in tokenizer.special_names:
        return tokenizer.special_names[token]
    data = tokenizer.decode_bytes([token])
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
