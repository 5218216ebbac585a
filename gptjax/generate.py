"""Text that continues prompts, as it is drawn; also a program.

python -m gptjax.generate --workdir=runs/quickstart --prompt="The " --num_samples=3 --stop="."
"""

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from configs.flags import UserError, call
from data_pipeline.tokenizer import StreamDecoder, Tokenizer
from gptjax.load import load_run
from gptjax.model import GPTConfig
from gptjax.sampler import Sampler, Sampling


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


def _in_turn(pieces: Iterable[tuple[int, str]], prompts: Sequence[str]) -> Iterator[str]:
    """Yields the texts one after the other, the first as it is drawn."""
    waiting = list(prompts)
    yield waiting[0]
    for i, piece in pieces:
        if i == 0:
            yield piece
        else:
            waiting[i] += piece
    for text in waiting[1:]:
        yield f"\n---\n{text}"


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    if not 0 < values.top_p <= 1:
        raise UserError(f"--top_p={values.top_p} must be in (0, 1].")
    if "" in values.stop:
        raise UserError("--stop= is empty: every text would end before it began.")
    _, model_config, params, tokenizer, _step = load_run(Path(values.workdir))
    names = (field.name for field in dataclasses.fields(Sampling))
    how: dict[str, Any] = {name: values[name].value for name in names}
    prompts = [prompt for prompt in values.prompt for _ in range(values.num_samples)]
    seeds = [values.seed + i for _ in values.prompt for i in range(values.num_samples)]
    pieces = continue_texts(
        Sampler(model_config, params),
        tokenizer,
        prompts,
        Sampling(**how),
        seeds=seeds,
        stop=values.stop,
    )
    for piece in _in_turn(pieces, prompts):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_multi_string("prompt", [""], "Text to continue; empty: a new document.")
    flags.DEFINE_integer("num_samples", 1, "Texts for each prompt.", lower_bound=1)
    flags.DEFINE_multi_string("stop", [], "A text ends before this string.")
    flags.DEFINE_integer("max_new_tokens", 200, "Tokens to draw.", lower_bound=0)
    flags.DEFINE_float("temperature", 0.8, "0: the most likely token each time.", lower_bound=0)
    flags.DEFINE_integer("top_k", 200, "Draw from the k most likely tokens; 0: all.", lower_bound=0)
    flags.DEFINE_float("top_p", 1.0, "Draw from the smallest set with this probability.")
    flags.DEFINE_integer("seed", 0, "The same seed gives the same texts; the i-th has seed + i.")
    app.run(lambda argv: call(_main, argv))
