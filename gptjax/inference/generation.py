"""Streams the text that continues prompts, or answers them."""

from collections.abc import Iterator, Sequence

from data_pipeline.chat import USER, Chat, Message
from data_pipeline.tokenizer import StreamDecoder, Tokenizer
from gptjax.inference.sampler import Sampler, Sampling


class TextStream:
    """Turns tokens into text, piece by piece, up to a stop string or a token that ends it.

    Holds back the bytes of incomplete characters, and text that may become a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.ended = False
        self._ends = tokenizer.ends
        self._decoder = StreamDecoder(tokenizer)
        self._stop = stop
        self._held = ""

    def feed(self, token: int) -> str:
        """Returns the text that this token completes; "" once the text has ended."""
        if self.ended:
            return ""
        if token in self._ends:
            self.ended = True
            return self.flush()
        self._held += self._decoder.feed([token])
        starts = [start for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if starts:
            self.ended = True
            self._held = self._held[: min(starts)]
            return self.flush()
        overlap = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        end = len(self._held) - overlap
        piece, self._held = self._held[:end], self._held[end:]
        return piece

    def flush(self) -> str:
        """Returns the text held back for a stop string; drops an incomplete last character."""
        piece, self._held = self._held, ""
        return piece


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def continue_texts(
    sampler: Sampler,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    seeds: Sequence[int],
    stop: Sequence[str] = (),
    is_chat: bool = False,
) -> Iterator[tuple[int, str]]:
    """Yields (index of the prompt, piece of its continuation) until all texts have ended.

    An empty prompt starts a new document; with `is_chat`, a prompt is the user's message, and is
    answered. The other arguments are those of `continue_rows`.
    """
    if is_chat:
        chat = Chat(tokenizer)
        rows = [chat.prompt([Message(USER, prompt)]) for prompt in prompts]
    else:
        rows = [[tokenizer.bos_id, *tokenizer.encode(prompt).tolist()] for prompt in prompts]
    return continue_rows(sampler, tokenizer, rows, sampling, seeds=seeds, stop=stop)


def continue_rows(
    sampler: Sampler,
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seeds: Sequence[int],
    stop: Sequence[str] = (),
) -> Iterator[tuple[int, str]]:
    """Yields (index of the row, piece of the text after its ids) until all texts have ended.

    `seeds` has one seed a row, see `Sampler.draw`. A text ends before the first of the `stop`
    strings, none of them empty, or with a token of `Tokenizer.ends`.
    """
    streams = [TextStream(tokenizer, stop) for _ in rows]
    for drawn in sampler.draw(rows, sampling, seeds=seeds):
        for i, (stream, ids) in enumerate(zip(streams, drawn.ids.tolist(), strict=True)):
            if piece := "".join(map(stream.feed, ids)):
                yield i, piece
        if all(stream.ended for stream in streams):
            return
    for i, stream in enumerate(streams):
        if piece := stream.flush():
            yield i, piece
