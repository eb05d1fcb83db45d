"""Code of the user's own, named in settings as `path/to/file.py:NAME`.

Loading it runs the file, as the user's own code that it is. So it is loaded for what a user gives, and never for what
is only read: a run's stored recipe, a manifest, a record.
"""

from __future__ import annotations

import hashlib
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from synpro_engine.config.addresses import is_address, spelled
from synpro_engine.config.errors import Stopped, UserError, nearest

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
    where = f"`{key}`: {spelled(own.file)}"
    if is_address(own.file):
        raise UserError(f"{where}: code is read from this machine's disk alone")
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


def calling(own: Own, key: str, work: Callable[[], _Result], seconds: float | None = None) -> _Result:
    """Run the user's code; whatever it raises is a UserError that names key, file and line, but for a wish to stop.

    seconds: so is what takes longer, in the main thread, where alone Python can be interrupted; None has no limit.
    """
    try:
        with _within(seconds):
            return work()
    except Stopped:  # raised into it by a signal, and no fault of it
        raise
    except (Exception, SystemExit, _TooSlow) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(own.file)]
        at = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        told = " ".join(f"raised {type(error).__name__}: {error}".split())
        told = f"took longer than {seconds:g} s" if isinstance(error, _TooSlow) else told
        raise UserError(f"`{key}`: {own.file}{f':{at}' if at else ''}: {told}") from None


class _TooSlow(BaseException):
    """No Exception, for code that is given up on may catch those."""


@contextmanager
def _within(seconds: float | None) -> Iterator[None]:
    """Raise _TooSlow where what is done here takes longer. A call into C is left to its end first."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(*_: Any) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, give_up)
    # Again and again: the first may fall into a `finally` that waits, too.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        finally:  # where the time is up this very moment
            signal.signal(signal.SIGALRM, before)
