"""Records as JSON, one in a file or one a line, read back into declared fields.

What is damaged or of another shape is a UserError that names the file and, where there are several records, the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from synpro_engine.config.errors import UserError
from synpro_engine.config.json_text import json_text

R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """The fields of a record that its reader needs, with their types; others are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class WholeLine(NamedTuple):
    """One line of a file. `where` names it in messages, `end` is the offset in bytes behind its newline."""

    where: str
    text: bytes
    end: int


def whole_lines(path: Path, *, start: int = 0) -> Iterator[WholeLine]:
    """The lines of an append-only file that end with a newline, without it; UserError when it cannot be read.

    start: the `end` of a line, behind which reading begins; lines are then counted from there.
    What follows the last newline was being written when the writer was killed, and is passed over: a writer that goes
    on cuts the file at the last line's `end` first.
    """
    end = start
    with _opened(path) as file:
        file.seek(start)
        # In bytes and by newlines only: text mode would also take \r for an end, and offsets would not be the file's.
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                # Only whole lines count, so that a writer which goes on cuts off exactly what a kill left.
                end += len(line)
                yield WholeLine(f"{path}:{number}", line[:-1], end)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines, each with its newline, to a file that is read by `whole_lines`."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    return _object(_bytes(path), str(path))


def read_record(path: Path, cls: type[R]) -> R:
    """The one record in a file."""
    return parse_record(_bytes(path), cls, str(path))


def read_records(path: Path, cls: type[R]) -> Iterator[R]:
    """Records of one a line, in order, of a file that is finished: a last line without its newline is damage."""
    end = 0
    for line in whole_lines(path):
        yield parse_record(line.text, cls, line.where)
        end = line.end
    # An artifact's files were finished before they were published: a torn line here was lost later.
    if end < path.stat().st_size:
        raise UserError(f"{path}: damaged (its last line is cut short)")


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


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _bytes(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: damaged (not JSON)") from None
    if not isinstance(data, dict):
        raise UserError(f"{where}: damaged (expected a JSON object)")
    return data
