"""The fields of one record: how a line becomes an object, and what stands in it under a dotted path.

What is no text or no id raises a Fault of its kind; the caller adds the file and line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

Reason = Literal[
    "not UTF-8",
    "malformed JSON",
    "not an object",
    "repeated field",
    "missing field",
    "wrong type",
    "empty",
    "half a surrogate pair",
    "repeated id",
    "repeated text",
]


class Fault(ValueError):
    """What is wrong with a record: its kind, and words that follow its place."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason: Reason = reason


def decode(raw: bytes) -> str:
    """The text of a line, which must be UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Fault("not UTF-8", f"not UTF-8 (byte {error.start + 1} is 0x{raw[error.start]:02x})") from None


def json_parser(fields: tuple[str, ...]) -> Callable[[str], object]:
    """A JSON parser that refuses a name on the way to one of `fields` twice in an object: which one is meant?"""
    # Only names that lead to what is read: a duplicate elsewhere in a record harms nothing.
    names = {name for field in fields for name in (field, *field.split("."))}

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        # The usual record has no duplicate, and pays for no more than this comparison.
        if len(built) < len(pairs):
            for name in names.intersection(built):
                if sum(key == name for key, _ in pairs) > 1:
                    raise Fault("repeated field", f"`{name}` stands there twice; which one is meant?")
        return built

    return partial(_parse, json.JSONDecoder(object_pairs_hook=build))


def _parse(decoder: json.JSONDecoder, line: str) -> object:
    try:
        return decoder.decode(line)
    except json.JSONDecodeError as error:
        what = f"{error.msg} at column {error.colno}; each line holds one JSON object"
        raise Fault("malformed JSON", f"malformed JSON ({what})") from None
    except Fault:
        raise
    except (ValueError, RecursionError):  # a number of thousands of digits; thousands of nested brackets
        raise Fault("malformed JSON", "malformed JSON (beyond what can be parsed)") from None


_ABSENT = object()


def _look_up(fields: object, path: str) -> object:
    """What stands under `path`; a dot in it may belong to a name or lead into a nested record. _ABSENT for nothing."""
    if not isinstance(fields, dict):
        return _ABSENT
    # A name with a dot in it goes before a path through records: it is the more literal reading.
    if path in fields:
        return fields[path]
    for at in (at for at, letter in enumerate(path) if letter == "."):
        below = _look_up(fields.get(path[:at]), path[at + 1 :])
        if below is not _ABSENT:
            return below
    return _ABSENT


def has(fields: dict[str, Any], path: str) -> bool:
    """Whether anything but null stands under `path`."""
    return value_at(fields, path) is not None


def value_at(fields: dict[str, Any], path: str) -> object:
    """What stands under `path`; None for nothing."""
    value = _look_up(fields, path)
    return None if value is _ABSENT else value


def missing(fields: dict[str, Any], wanted: str) -> Fault:
    """The fault of a record that has none of what is wanted, with the names that it has."""
    there = ", ".join(f"`{name}`" for name in list(fields)[:10]) or "nothing"
    return Fault("missing field", f"{wanted} (there is {there})")


def text_at(fields: dict[str, Any], path: str, setting: str = "text_field") -> str:
    """The text under `path`, which `setting` names: there, a string, not empty."""
    value = _look_up(fields, path)
    if value is _ABSENT:
        raise _missing(fields, setting, path)
    if not isinstance(value, str):
        raise Fault("wrong type", f"`{path}` must be a string, found {type(value).__name__}")
    return checked(value, path)


def id_at(fields: dict[str, Any], path: str | None) -> str | None:
    """The record's own id; None where it has none and none is asked for."""
    value = _look_up(fields, path or "id")
    if path is None and (value is _ABSENT or value is None):
        return None
    if value is _ABSENT:
        raise _missing(fields, "id_field", path or "id")
    # Python counts true as an integer, and "True" would be an id that many records share.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        wanted = "must be a string or an integer"
        raise Fault("wrong type", f"`{path or 'id'}` {wanted}, found {type(value).__name__}")
    return checked(value, path or "id")


def _missing(fields: dict[str, Any], setting: str, path: str) -> Fault:
    # A few, for a record may have hundreds of fields and a message is a line.
    return missing(fields, f"`{path}` is missing; `{setting}` names another field")


def checked(value: str, path: str) -> str:
    """The text, if it is one: not empty, and of whole characters."""
    if not value.strip():
        raise Fault("empty", f"`{path}` is empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which no UTF-8 file and no tokenizer can hold
        raise Fault(
            "half a surrogate pair", f"`{path}` holds half of a surrogate pair, which is no character"
        ) from None
    return value
