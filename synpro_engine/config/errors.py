"""The ways in which a command ends early: a fault that the user can mend, a stop on demand, a rank that failed."""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_BRIEF = 80  # characters
_PASSWORD = re.compile(r"(://[^\s/:@]*):[^\s@]*@")  # in a URL; secrets of object stores have slashes in them
_USER = re.compile(r"://[^\s'\"]*@")
_QUERY = re.compile(r"((?:://|url: /)[^\s?]*)\?\S*")  # urllib3 tells a URL without its host
_SECRET = re.compile(r"KEY|TOKEN|PASSWORD|SECRET", re.IGNORECASE)  # in the name of a variable of the environment
_SHORTEST_SECRET = 8
REFUSALS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.EBUSY,
     errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE)
)  # fmt: skip
"""What a file system says (`OSError.errno`) that takes or gives no more."""


def printable(text: str) -> str:
    """Text with line breaks and other control characters spelled out."""
    # Escape sequences in a file's names or texts could move the cursor, hide the
    # message or set the terminal's title.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UserError(Exception):
    """A fault of the input, the configuration or the machine, told in one line.

    The message names the file and line, or the configuration key. The command line prints it without a
    traceback and exits with code 2; everything else that escapes is a bug and keeps its traceback.

    message: may quote what files say. Line breaks and other control characters in it are spelled out, so that a name in
    a file neither breaks the line nor commands the terminal.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class TransientError(UserError):
    """A UserError of a file system or a service that refused, or did not answer: another time it may be gone."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within the block an OSError names the file, which Python's leave out where reading or writing fails."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own, whose words are all there is
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


EXIT_STOPPED = 75
"""Exit code of a job that was asked to stop and can go on: EX_TEMPFAIL of sysexits.h."""


class Stopped(Exception):
    """The job was asked to stop and has kept what it can go on from. Every rank of the job raises it."""

    at_once = False
    """Whether something was left, such as a library that asks a server which does not answer, and the process ends
    without what that would do at its end: those who wait for it give notice of seconds."""


class RankFailed(SystemExit):
    """The job has failed and the user was told; its groups are broken, so nothing may wait in them. `code`: to exit."""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return " (did you mean `x`?)" for the closest known name, or "" when none is as alike as `cutoff` (1: equal)."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (did you mean `{close[0]}`?)" if close else ""


def first_line(error: BaseException) -> str:
    """What an exception says, for a message of one line; its type's name where it says nothing."""
    # C++ extensions put a stack trace behind their first line.
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def without_credentials(text: str) -> str:
    """Text without passwords and queries in URLs, and without values of variables that are named as secrets."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return _QUERY.sub(r"\1?***", _PASSWORD.sub(r"\1:***@", text))


def brief(value: Any) -> str:
    """A value as a message quotes it: Python's own spelling, one line, no passwords in it, cut where it is long."""
    text = _USER.sub("://***@", without_credentials(repr(value)))
    return text if len(text) <= _BRIEF else text[: _BRIEF - 3] + "..."
