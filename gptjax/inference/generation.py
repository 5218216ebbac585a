"""Text that continues prompts, as it is drawn."""

from collections.abc import Iterator, Sequence
from typing import Any

from data_pipeline.tokenizer import StreamDecoder, Tokenizer
from gptjax.inference.sampler import Sampler, Sampling
from gptjax.model.config import GPTConfig


class TextStream:
    """Drawn tokens -> text, as it becomes certain; ends before a stop string, or at a BOS.

    Held back are bytes that are no whole character yet, and text that may become a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        """Takes the tokenizer of the model and stop strings, none of them empty."""
        self.ended = False
        self._bos_id = tokenizer.bos_id
        self._decoder = StreamDecoder(tokenizer)
        self._stop = stop
        self._held = ""

    def feed(self, token: int) -> str:
        """Returns what can be shown with this token; nothing when the text has ended."""
        if self.ended:
            return ""
        if token == self._bos_id:  # the next document would begin
            self.ended = True
            return self.flush()
        self._held += self._decoder.feed([token])
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.ended = True
            self._held = self._held[: min(found)]
            return self.flush()
        held = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        certain = len(self._held) - held
        piece, self._held = self._held[:certain], self._held[certain:]
        return piece

    def flush(self) -> str:
        """Returns what was held back for a stop string, when no token will follow.

        Of a character that the text ends within, nothing is shown.
        """
        piece, self._held = self._held, ""
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
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
) -> Iterator[tuple[int, str]]:
    """Yields (number of the prompt, piece of its continuation) until all texts have ended.

    Args:
        sampler: the model.
        tokenizer: the one it was trained with.
        prompts: texts; an empty one is a new document.
        sampling: see `Sampler.draw`.
        seeds: see `Sampler.draw`.
        stop: a text ends before the first of these strings.
    """
    rows = [[tokenizer.bos_id, *tokenizer.encode(prompt).tolist()] for prompt in prompts]
    streams = [TextStream(tokenizer, stop) for _ in prompts]
    for drawn in sampler.draw(rows, sampling, seeds=seeds):
        for i, (stream, ids) in enumerate(zip(streams, drawn.ids.tolist(), strict=True)):
            if piece := "".join(map(stream.feed, ids)):
                yield i, piece
        if all(stream.ended for stream in streams):
            return
    for i, stream in enumerate(streams):
        if piece := stream.flush():
            yield i, piece


def generate_text(
    model_config: GPTConfig,
    params: Any,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    seed: int,
    **sampling: Any,
) -> Iterator[str]:
    """Yields the pieces of one continuation: see `continue_texts` and `Sampling`."""
    sampler, how = Sampler(model_config, params), Sampling(**sampling)
    for _, piece in continue_texts(sampler, tokenizer, [prompt], how, seeds=[seed]):
        yield piece
