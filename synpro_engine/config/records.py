"""Records as JSON, one in a file or one a line, read back into declared fields.

Knows files and fields; does not know what a record means. What is damaged or of another shape is a UserError that names
the file and, where there are several records, the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from synpro_engine.config.errors import UserError
from synpro_engine.config.json_text import json_text

R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """The fields of a record that its reader needs, with their types; others are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    return _object(_bytes(path), str(path))


def read_record(path: Path, cls: type[R]) -> R:
    """The one record in a file."""
    return parse_record(_bytes(path), cls, str(path))


def read_records(path: Path, cls: type[R]) -> Iterator[R]:
    """Records of one a line, in order. Each line ends with a newline: one that does not was cut short."""
    for number, line in enumerate(_bytes(path).splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            raise UserError(f"{path}:{number}: damaged (the line is cut short)")
        yield parse_record(line, cls, f"{path}:{number}")


def parse_record(text: bytes, cls: type[R], where: str) -> R:
    """One record from its JSON text; `where` names it in the UserError."""
    return as_record(_object(text, where), cls, where)


def as_record(data: Any, cls: type[R], where: str) -> R:
    """A record from plain data that was read from `where`."""
    try:
        # Through JSON: strict types would refuse its lists for tuples.
        return cls.model_validate_json(json_text(data))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: damaged, or of another version (`{key}`: {first['msg'].lower()})") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: damaged (not JSON)") from None
    if not isinstance(data, dict):
        raise UserError(f"{where}: damaged (expected a JSON object)")
    return data
