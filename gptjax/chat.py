"""Talks with a run's model in the terminal, if it was tuned on conversations.

gptjax chat runs/quickstart-chat

Ctrl-C ends an answer, Ctrl-D the conversation; /new begins another one.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from configs import cli
from configs.errors import UserError
from data_pipeline.chat import ASSISTANT, SYSTEM, USER, Chat, Message
from gptjax.inference import LoadedModel, Sampler, Sampling, continue_rows, load_run, sampling_flags
from gptjax.step.compilation_cache import keep_compiled

_NEW = "/new"


class Conversation:
    """A conversation with a model, which sees as much of its end as has room in its window."""

    def __init__(self, run: LoadedModel, sampling: Sampling, *, system: str = "", seed: int = 0):
        """Takes a model with a chat template; UserError where it has none."""
        self.messages: list[Message] = []
        self._system = [Message(SYSTEM, system)] if system else []
        self._chat, self._tokenizer = Chat(run.tokenizer), run.tokenizer
        self._sampler = Sampler(run.model_config, run.params)
        self._sampling, self._seed = sampling, seed
        self._block_size = run.model_config.block_size

    def answer(self, text: str) -> Iterator[str]:
        """Yields the answer to a message in pieces; what has come of it is kept.

        Raises UserError if the window has no room for the message.
        """
        self.messages.append(Message(USER, text))
        row = self._row()
        room = min(self._sampling.max_new_tokens, self._block_size - len(row))
        sampling = dataclasses.replace(self._sampling, max_new_tokens=room)
        seed = self._seed + len(self.messages)
        pieces: list[str] = []
        try:
            for _, piece in continue_rows(
                self._sampler, self._tokenizer, [row], sampling, seeds=[seed]
            ):
                pieces.append(piece)
                yield piece
        finally:
            self.messages.append(Message(ASSISTANT, "".join(pieces)))

    def _row(self) -> list[int]:
        """Returns the ids of as many of the last messages as leave room for an answer."""
        room = min(self._sampling.max_new_tokens, self._block_size // 2)
        for first in range(0, len(self.messages), 2):
            row = self._chat.prompt([*self._system, *self.messages[first:]])
            if len(row) + room <= self._block_size:
                return row
        self.messages.pop()
        raise UserError(
            f"that message is too long: with what surrounds it, it has {len(row):,} tokens, and "
            f"the model sees {self._block_size:,}, of which the answer has {room:,}."
        )


def talk(conversation: Conversation) -> None:
    """Reads messages from the terminal and prints the answers, until it ends."""
    with contextlib.suppress(ImportError):  # not on every system
        import readline  # noqa: F401  # lines can be edited, and called again
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text == _NEW:
            conversation.messages.clear()
        if text in ("", _NEW):
            continue
        try:
            for piece in conversation.answer(text):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        except UserError as error:
            print(error, end="")
        print("\n")


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    sampling = sampling_flags.sampling_of(values)
    keep_compiled(values.compilation_cache_dir)
    run = load_run(Path(values.workdir))
    conversation = Conversation(run, sampling, system=values.system, seed=values.seed)
    print(f"{values.workdir}, step {run.step:,}. {_NEW}: another conversation; Ctrl-D: the end.\n")
    talk(conversation)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_string("system", "", "What the model is to keep in mind; empty: nothing.")
    flags.DEFINE_integer("max_new_tokens", 200, "Tokens of an answer, at most.", lower_bound=1)
    sampling_flags.define(temperature=0.7, top_k=50)
    flags.DEFINE_integer("seed", 0, "The same seed and messages give the same answers.")
    cli.define_compilation_cache_dir()
    cli.run_argv(_main, first="workdir")
