"""Finds the messages of a conversation in a line of JSON."""

import json
from typing import Any, NamedTuple

from configs.read import parse_json
from data_pipeline import chat
from data_pipeline.sources.documents import Columns
from data_pipeline.sources.formats import Broken, JsonLines, Unusable


class Conversations(NamedTuple):
    """A JSON object a line, with a list of messages, each of `role` and `content`.

    The text of such a document is the list as JSON, in one form: equal ones are duplicates.
    """

    columns: Columns
    separator: bytes = b"\n"
    unit: str = "line"

    def document(self, record: bytes) -> tuple[str, bytes]:
        """See `Format`; a conversation in which the assistant says nothing is unusable."""
        line = JsonLines(self.columns)
        value = line.parse(record)
        messages = line.value(value, "messages_column", self.columns.messages)
        if messages is None:
            raise Unusable("null_text")
        if problem := chat.problem(messages, self.columns.messages):
            raise Broken(problem)
        name = line.name(value)
        if all(message["role"] != chat.ASSISTANT for message in messages):
            raise Unusable("no_answer")
        return name, json.dumps(chat.messages_of(messages), ensure_ascii=False).encode()

    def problem(self, record: bytes) -> str:
        """See `Format`: each is parsed, for there are fewer conversations than texts."""
        try:
            self.document(record)
        except Broken as e:
            return str(e)
        except Unusable:
            pass
        return ""

    def identity(self) -> dict[str, Any]:
        """See `Format`."""
        return {"messages_column": self.columns.messages, self.columns.id_key: self.columns.id}


def read(text: bytes | memoryview) -> list[chat.Message]:
    """Returns the messages of a document of `Conversations`."""
    return [chat.Message(*pair) for pair in parse_json(bytes(text))]
