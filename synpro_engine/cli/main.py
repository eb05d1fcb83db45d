"""Entry point of the `synpro` command: users' faults in one line, signals, exit codes. The commands are in `app`."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from synpro_engine.cli.app import app
from synpro_engine.config.errors import EXIT_STOPPED, RankFailed, Stopped, UserError

_FIRST_SPEAKS_S = 30.0  # and ends, and the launcher then ends the others: seconds, and more on a busy machine
_WISHES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# A path as the user gave it cannot be one; and a file system that takes or gives no more.
_NO_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)
_NO_WRITES = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.EBUSY,
    errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE,
)  # fmt: skip
# Warnings of other libraries that say nothing a user can act on. What is not listed here is still shown.
_KNOWN = (
    "Apex is not installed",  # optional; `synpro doctor` says what serves instead
    "Transformer Engine and Apex are not installed",
    r".*torch\.jit\.script_method.* is deprecated",  # Megatron's
    r".*(reduce_scatter_tensor|all_gather_into_tensor|_reduce_scatter_base|_all_gather_base).* is deprecated",
    r".*`load_state_dict` is deprecated",
    "The .grad attribute of a Tensor that is not a leaf",
    "TypedStorage is deprecated",
    "full scope is deprecated",  # of CUDA graphs, which are not used
    "MimoModelConfig is experimental",  # and not used
)
# The same by the logger that it comes from.
_LOGGED = {
    "megatron.core.distributed.distributed_data_parallel": "full_param_layout not provided",  # it makes its own
    "torch.utils.cpp_extension": "No CUDA runtime is found",  # a toolkit on a machine without a GPU
}


def _complain(message: str, what: str = "error") -> None:
    """One line from the first process; from another one only where that has none, and therefore has not ended."""
    from synpro_engine.dist.environment import is_first_process, read_environment

    if is_first_process():
        print(f"{what}: {message}", file=sys.stderr, flush=True)
    elif what == "error":
        time.sleep(_FIRST_SPEAKS_S)  # the launcher ends this process when the first one has ended
        who = f"rank {read_environment().rank} on {socket.gethostname()}"
        print(f"{what}: {who} failed: {message}", file=sys.stderr, flush=True)


@contextmanager
def _heeding_signals(*, ends: bool) -> Iterator[None]:
    """Stop at once on a signal while nothing is in hand: before the job is joined, which takes them over, and after it.

    ends: whether the process does, once all is done: then a signal that comes late must not change its exit code.
    """

    def leave(number: int, frame: object) -> None:
        # By the system call: a handler may have broken into a write.
        os.write(2, f"stopped: {signal.Signals(number).name}: nothing was in hand\n".encode())
        os._exit(EXIT_STOPPED)

    before, done = {number: signal.signal(number, leave) for number in _WISHES}, False
    try:
        yield
    except SystemExit as end:
        done = not end.code
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if ends and done else handler)


def silence_known_warnings() -> None:
    """Keep the known notices of Megatron and torch off the terminal."""
    for message in _KNOWN:
        warnings.filterwarnings("ignore", message=message)
    for name in _LOGGED:
        logging.getLogger(name).addFilter(lambda record: _LOGGED[record.name] not in record.getMessage())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the program, and with `argv` of a command within another one.

    Exit codes: 0 done, 2 a fault the user can mend (one line), 75 stopped on demand, 1 a bug. A job of several ranks
    that failed ends here at once: leaving its groups in order would wait for the dead.
    """
    silence_known_warnings()
    try:
        with _heeding_signals(ends=argv is None):
            return app(args=argv, prog_name="synpro", standalone_mode=True) or 0
    except RankFailed as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except Stopped as stop:
        _complain(f"{stop}; the same command goes on from there", "stopped")
        return EXIT_STOPPED
    except UserError as error:
        _complain(str(error))
    except OSError as error:
        if error.errno in _NO_NAMES:
            _complain(f"{error.filename}: {os.strerror(error.errno)}")
        elif error.errno in _NO_WRITES:
            _complain(f"{error.filename or 'output'}: {os.strerror(error.errno)}; what was written stays readable")
        else:
            raise
    return 2
