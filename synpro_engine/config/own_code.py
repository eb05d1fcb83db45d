"""Code of the user's own, named in settings as `path/to/file.py:NAME`.

Loading it runs the file, as the user's own code that it is. So it is loaded for what a user gives, and never for what
is only read: a run's stored recipe, a manifest, a record.
"""

from __future__ import annotations

import hashlib
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from synpro_engine.config.errors import UserError, nearest

_REFERENCE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_][A-Za-z0-9_]{0,60})", re.DOTALL)
_Result = TypeVar("_Result")


class Own(NamedTuple):
    """Where something of the user's own is: a name in a file."""

    file: Path
    name: str


class Loaded(NamedTuple):
    """What was found there, and the SHA-256 of the file's content."""

    value: Any
    sha256: str


def own_reference(text: str) -> Own | None:
    """Where `text` says that something is; None where it is no such reference."""
    match = _REFERENCE.fullmatch(text)
    return None if match is None else Own(Path(match["file"]), match["name"])


def load_own(own: Own, key: str, kind: type | Callable[[Any], bool], what: str) -> Loaded:
    """Run the file and take what goes by the name; UserError names key, file and line.

    kind: the type of what is wanted, or a test of it; what: its name in messages.
    """
    where = f"`{key}`: {own.file}"
    try:
        code = own.file.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    digest = hashlib.sha256(code).hexdigest()
    module = ModuleType(f"synpro_own_{digest[:16]}")
    module.__file__ = str(own.file)
    sys.modules[module.__name__] = module  # where dataclasses and type hints look their own module up
    # Not by an import: its cache of byte code goes by time and size, and lies in the user's folder.
    calling(own, key, lambda: exec(compile(code, str(own.file), "exec"), module.__dict__))

    def fits(value: Any) -> bool:
        return isinstance(value, kind) if isinstance(kind, type) else kind(value)

    found = module.__dict__.get(own.name)
    if found is None:
        named = [name for name, value in module.__dict__.items() if fits(value)]
        raise UserError(f"{where}: has no `{own.name}`{nearest(own.name, named)}")
    if not fits(found):
        raise UserError(f"{where}: `{own.name}` is no {what} but {type(found).__name__}")
    return Loaded(found, digest)


def calling(own: Own, key: str, work: Callable[[], _Result]) -> _Result:
    """Run the user's code; whatever it raises is a UserError that names key, file and line."""
    try:
        return work()
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(own.file)]
        at = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"`{key}`: {own.file}{f':{at}' if at else ''}: raised {told}") from None
