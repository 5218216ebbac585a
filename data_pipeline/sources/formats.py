"""Finds text and id in a record: a line of JSON, or text as it is."""

from typing import Any, NamedTuple, Protocol

from configs.read import parse_json
from data_pipeline.sources.documents import AUTO, MAX_DOCUMENT, Columns

BOM = b"\xef\xbb\xbf"  # some editors begin a file with it
TOO_LONG = f"it has over {MAX_DOCUMENT:,} bytes, the most that a document can have"
_MAX_KEYS = 20  # in a message


class Unusable(ValueError):
    """A record that is no document: the reason, as it is counted."""


class Broken(ValueError):
    """A record that is not as it should be."""


class MissingColumn(Broken):
    """A record that lacks a key which the configuration names."""


class Format(Protocol):
    """How the records of a file are written."""

    @property
    def separator(self) -> bytes:
        """What ends a record; b"": a file is one."""

    @property
    def unit(self) -> str:
        """What a record is called; numbered from 1."""

    def document(self, record: bytes) -> tuple[str, bytes]:
        """Returns id and text; an id of "" is none.

        Raises:
          Unusable: the record is well-formed, without a text.
          Broken: it is not.
        """

    def problem(self, record: bytes) -> str:
        """Returns what a quick look finds wrong with a record, or ""."""

    def identity(self) -> dict[str, Any]:
        """Returns what documents depend on besides the file: JSON."""


def decode(record: bytes) -> str:
    """Returns a record as a text; Unusable: it is no UTF-8."""
    try:
        return record.decode()
    except UnicodeDecodeError as e:
        raise Unusable("invalid_utf8") from e


class JsonLines(NamedTuple):
    """A JSON object a line."""

    columns: Columns
    separator: bytes = b"\n"
    unit: str = "line"

    def document(self, record: bytes) -> tuple[str, bytes]:
        """See `Format`."""
        value = self.parse(record)
        text = self.value(value, "text_column", self.columns.text)
        if text is None:
            raise Unusable("null_text")
        if not isinstance(text, str):
            raise Broken(f"the value of {self.columns.text!r} is no string")
        name = self.name(value)
        if not text:
            raise Unusable("empty_text")
        return name, text.encode()

    def parse(self, record: bytes) -> dict[str, Any]:
        """Returns the object of a line; raises as `Format.document`."""
        if not record.strip():
            raise Unusable("empty_text")
        try:
            value = parse_json(record)
        except UnicodeError as e:  # or half of a surrogate pair
            raise Unusable("invalid_utf8") from e
        except ValueError as e:
            raise Broken(f"it is no JSON ({e})") from e
        if not isinstance(value, dict):
            raise Broken("it is no JSON object")
        return value

    def name(self, value: dict[str, Any]) -> str:
        """Returns the id of an object; "": none. Raises as `Format.document`."""
        column = self.columns.id
        if column == AUTO:
            name = value.get("id")
            return str(name) if _is_name(name) else ""
        name = self.value(value, self.columns.id_key, column) if column else ""
        if name is None:
            raise Unusable("null_id")
        if not _is_name(name):
            raise Broken(f"the value of {column!r} is neither a string nor a whole number")
        return str(name)

    def value(self, value: dict[str, Any], key: str, column: str) -> Any:
        """Returns what an object has under `column`, which data.`key` names."""
        if column not in value:
            keys = ", ".join(list(value)[:_MAX_KEYS])
            raise MissingColumn(f"it has no {column!r}, which data.{key} names; it has: {keys}")
        return value[column]

    def problem(self, record: bytes) -> str:
        """See `Format`; parsing each would take as long as ten such looks."""
        line = record.strip()
        whole = not line or (line.startswith(b"{") and line.endswith(b"}"))
        return "" if whole else "it is no JSON object: it does not begin with { and end with }"

    def identity(self) -> dict[str, Any]:
        """See `Format`."""
        return {"text_column": self.columns.text, self.columns.id_key: self.columns.id}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) or type(value) is int


class PlainText(NamedTuple):
    """Documents between separators, or one a file."""

    separator: bytes
    unit: str = "document"

    def document(self, record: bytes) -> tuple[str, bytes]:
        """See `Format`."""
        if not record:
            raise Unusable("empty_text")
        decode(record)
        return "", record

    def problem(self, record: bytes) -> str:
        """See `Format`."""
        return ""

    def identity(self) -> dict[str, Any]:
        """See `Format`."""
        return {"separator": self.separator.decode()}
