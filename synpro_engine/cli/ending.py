"""How a command ends: its exit code, the user's faults in one line, and what a signal does while nothing is in hand.

Knows faults and signals; does not know what the command does.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from synpro_engine.backend.quiet import silence_known_warnings
from synpro_engine.config.errors import EXIT_STOPPED, REFUSALS, RankFailed, Stopped, UserError

_FIRST_SPEAKS_S = 30.0  # and ends, and the launcher then ends the others: seconds, and more on a busy machine

_WISHES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_NO_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)  # a path as the user gave it cannot be one


def run_script(main: Callable[[], int | None], *, ends: bool = True) -> int:
    """Run `main` as the `synpro` command runs its own work, and return the exit code for `sys.exit`.

    0 (or what `main` returns) done, 2 a fault the user can mend (a UserError or a file system that refuses, in one
    line), 75 stopped on demand, after what was in hand was saved; a bug keeps its traceback. A job of several ranks
    that failed ends here at once: leaving its groups in order would wait for the dead. Notices of Megatron and torch
    that say nothing to a user are left out. To be called from the main thread.

    ends: whether the process ends afterwards; a signal that comes late then changes no exit code.
    """
    silence_known_warnings()
    try:
        with _heeding_signals(ends=ends):
            return main() or 0
    except RankFailed as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    except SystemExit as end:
        if isinstance(end.code, str):
            raise  # its message is printed where it arrives
        return int(end.code or 0)
    except Stopped as stop:
        _complain(f"{stop}; the same command goes on from there", "stopped")
        if ends and stop.at_once:
            sys.stdout.flush()
            os._exit(EXIT_STOPPED)
        return EXIT_STOPPED
    except UserError as error:
        _complain(str(error), of=error)
    except OSError as error:
        if error.errno in _NO_NAMES:
            _complain(f"{error.filename}: {os.strerror(error.errno)}")
        elif error.errno in REFUSALS:
            _complain(f"{error.filename or 'output'}: {os.strerror(error.errno)}; what was written stays readable")
        else:
            raise
    return 2


def _complain(message: str, what: str = "error", *, of: Exception | None = None) -> None:
    """One line from the first process; from another one only where that has none, and therefore has not ended."""
    from synpro_engine.dist.environment import is_first_process, read_environment

    if is_first_process():
        print(f"{what}: {message}", file=sys.stderr, flush=True)
    elif what == "error":
        from synpro_engine.dist.job import SharedError

        here = read_environment()
        # The launcher ends this process when the first one of its machine has ended. That of another machine
        # waits for nobody: no launcher sees the first process from there.
        if here.local_rank > 0 or here.rank == here.local_rank:
            time.sleep(_FIRST_SPEAKS_S)
        elif isinstance(of, SharedError):
            return  # the first process says the very same
        print(f"{what}: rank {here.rank} on {socket.gethostname()} failed: {message}", file=sys.stderr, flush=True)


def _leave_early(number: int, frame: object) -> None:
    """Stop while nothing is in hand: before the job is joined, which then takes the signals over, and after it."""
    # Another rank's signal may come of its launcher, after the first one has said what was wrong. A handler should
    # import nothing: a process that has not come to that module yet does not know its rank, and speaks.
    environment = sys.modules.get("synpro_engine.dist.environment")
    if getattr(environment, "is_first_process", lambda: True)():
        os.write(2, f"stopped: {signal.Signals(number).name}: nothing was in hand\n".encode())
    os._exit(EXIT_STOPPED)


@contextmanager
def _heeding_signals(*, ends: bool) -> Iterator[None]:
    """ends: whether the process does, once all is done: then a signal that comes late must not change its exit code."""
    before, done = {number: signal.signal(number, _leave_early) for number in _WISHES}, False
    try:
        yield
        done = True
    except SystemExit as end:
        done = not end.code
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if ends and done else handler)
