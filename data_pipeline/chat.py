"""Conversations as tokens: the template of a chat, and which of its tokens count in the loss.

    BOS<|im_start|>user
    Hello<|im_end|>
    <|im_start|>assistant
    Hi<|im_end|>

That is ChatML, whose markers many models have and all programs know. They are special tokens, which
no text contains: a message that spells one stays a message. So the tokens of a conversation say by
themselves which of them count: the content of the assistant's messages, and the marker that ends
each.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from configs.errors import UserError
from configs.read import mismatch
from data_pipeline.tokenizer import Tokenizer

START, END = MARKERS = "<|im_start|>", "<|im_end|>"
SYSTEM, USER, ASSISTANT = ROLES = "system", "user", "assistant"
# The same in Jinja, for programs that read tokenizer_config.json or a GGUF file.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Message(NamedTuple):
    """A turn of a conversation."""

    role: str  # one of ROLES
    content: str


def problem(messages: Any, name: str = "messages") -> str:
    """Returns what is wrong with messages as JSON lists them, or ""; `name` is that of the list.

    An optional system message is followed by the user's and the assistant's in turns.
    """
    if text := mismatch(messages, [{"role": str, "content": str}], name):
        return text
    if not messages:
        return f"{name} is empty"
    first = messages[0]["role"] == SYSTEM
    for i, message in enumerate(messages):
        where, role = f"{name}[{i}]", message["role"]
        if role not in ROLES:
            return f"{where}.role is {role!r:.40}, and not one of {', '.join(ROLES)}"
        expected = SYSTEM if first and not i else (USER, ASSISTANT)[(i - first) % 2]
        if role != expected:
            return f"{where}.role is {role!r} where {expected!r} has its turn"
        if not message["content"]:
            return f"{where}.content is empty"
    return ""


def messages_of(values: Sequence[dict[str, Any]]) -> list[Message]:
    """Returns messages without a `problem`; other keys than role and content are left out."""
    return [Message(value["role"], value["content"]) for value in values]


def has_markers(tokenizer: Tokenizer) -> bool:
    """Returns whether a model with this tokenizer has a chat template."""
    return all(name in tokenizer.specials for name in MARKERS)


class Chat:
    """The template, with a tokenizer that has its markers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Takes the tokenizer; UserError where it lacks a marker."""
        if missing := [name for name in MARKERS if name not in tokenizer.specials]:
            raise UserError(
                f"the model has no chat template: its tokenizer lacks {' and '.join(missing)}. "
                "Tune it on conversations first: gptjax train chat:WORKDIR."
            )
        self._tokenizer = tokenizer
        self._start, self._end = (tokenizer.specials[name] for name in MARKERS)
        self._newline = tokenizer.encode("\n").tolist()
        self._header_ids = tokenizer.encode(f"{ASSISTANT}\n").tolist()
        self._header = tokenizer.decode_bytes(self._header_ids)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Returns the ids of a conversation, BOS first."""
        ids = [self._tokenizer.bos_id]
        for role, content in messages:
            text = self._tokenizer.encode(f"{role}\n{content}").tolist()
            ids += [self._start, *text, self._end, *self._newline]
        return ids

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Returns the ids of a conversation, up to where the assistant's next message begins."""
        return [*self.encode(messages), self._start, *self._header_ids]

    def counted(self, ids: np.ndarray) -> np.ndarray:
        """Returns which tokens of a conversation, or of its beginning, count in the loss: bool [n].

        A token counts if a byte of it is the assistant's, or if it is the end of such a message.
        """
        counts = np.zeros(len(ids), bool)
        ends = np.append(np.flatnonzero(ids == self._end), len(ids))
        for start in np.flatnonzero(ids == self._start):
            stop = ends[np.searchsorted(ends, start)]
            body = ids[start + 1 : stop]
            if self._tokenizer.decode_bytes(body).startswith(self._header):
                n_bytes = np.cumsum(self._tokenizer.token_bytes[body])
                counts[start + 1 : stop] = n_bytes > len(self._header)
                counts[stop : stop + 1] = True
        return counts
