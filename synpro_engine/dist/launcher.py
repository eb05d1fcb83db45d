"""Starting the ranks of one machine: torchrun's agent, without its way to end.

torchrun answers SIGTERM by giving its ranks 30 seconds, ends with code 1 whatever theirs was, and follows a failing
rank's own words with a page of its own. Here signals are passed on, the code is the failing rank's, and the last line
names the rank.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence

import psutil
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError

from synpro_engine.config.errors import EXIT_STOPPED

_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_passed: set[int] = set()  # signals that this launcher was sent
_reached: set[int] = set()  # processes that they were passed on to
_TOLD = (2, EXIT_STOPPED)  # codes of ranks that have said all there is to say
_LINGER_S = 5.0
"""How long a launcher stays after its ranks failed: the others meet through the first, and their ranks end just now."""


def launch_ranks(arguments: Sequence[str]) -> int:
    """Run `torchrun [its options] -m synpro_engine COMMAND ...` for these arguments; returns the ranks' exit code.

    A rank that a signal ended counts as 128 and its number, as in a shell; but for a signal that was passed on, which
    found the rank before or after its work: as stopped.
    """
    # torchrun takes what stands first as the module to run, and that is our command: it is
    # put behind the package's name.
    args = torchrun.parse_args(["-m", *arguments])
    args.training_script_args = [args.training_script, *args.training_script_args]
    args.training_script = "synpro_engine"
    if args.nnodes == "1:1" and not args.rdzv_endpoint and args.rdzv_backend == "static":
        args.standalone = True  # a free port, so that two jobs may share a machine
    # torchrun gives each of several ranks one thread, whatever the machine has, unless it is told otherwise.
    ranks_here = torchrun.determine_local_world_size(args.nproc_per_node)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks_here)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it says of ranks, we say
    outcome: list[BaseException] = []

    def agent() -> None:
        try:
            torchrun.run(args)
        # A SystemExit too, which a thread would swallow.
        except BaseException as error:  # to be told by the main thread
            outcome.append(error)

    # In a thread, where torchrun takes no signals over; this one hands them on to the ranks.
    thread = threading.Thread(target=agent, name="agent", daemon=True)
    for number in _PASSED_ON:
        # Before the thread starts: a signal in between would end the launcher and leave ranks that nobody tells.
        signal.signal(number, _pass_on)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        if _passed:
            # With `--max-restarts` torchrun begins ranks again that have stopped as they were asked to. They have
            # nothing in hand yet, and the last of them ends the job.
            _send(signal.SIGTERM, [rank for rank in psutil.Process().children() if rank.pid not in _reached])
    if not outcome:
        return 0
    if isinstance(outcome[0], ChildFailedError):
        code = _tell(*_root(outcome[0].failures))
        if args.nnodes not in ("1", "1:1"):
            time.sleep(_LINGER_S)
        return code
    if isinstance(outcome[0], RendezvousConnectionError):
        return _tell_alone(args.rdzv_endpoint)
    raise outcome[0]


def _pass_on(number: int, frame: object) -> None:
    _passed.add(number)
    ranks = psutil.Process().children()
    if not ranks:  # the launchers have not all met yet
        # By the system call and `_exit`, for this handler may have interrupted a print, whose lock it would wait for.
        os.write(2, f"stopped: {signal.Signals(number).name}: no rank was at work\n".encode())
        os._exit(EXIT_STOPPED)
    _send(number, ranks)


def _send(number: int, ranks: Sequence[psutil.Process]) -> None:
    for rank in ranks:
        _reached.add(rank.pid)
        # A rank may end between the listing and the signal, and the others must be told all the same.
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.send_signal(number)


def _root(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that struck the others: one that a signal killed could not speak before those that did.

    SIGTERM is how torchrun ends the ranks that are left; it tells no order of time.
    """

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, int]:
        rank, code = item[0], item[1].exitcode
        # A rank with a code of its own could speak, and mostly says that another one is gone; so
        # the killed one is named first.
        return code == -signal.SIGTERM, code >= 0, rank

    return min(failures.items(), key=order)


def _tell(rank: int, failure: ProcessFailure) -> int:
    code, who = failure.exitcode, f"rank {rank} on {socket.gethostname()}"
    if code < 0:
        name = signal.Signals(-code).name
        # The rank was not yet, or no longer, listening: asked to stop, it did, and the
        # job can go on from what is saved.
        if -code in _passed:
            print(f"stopped: {name}: {who} had nothing in hand", file=sys.stderr)
            return EXIT_STOPPED
        why = " (the kernel does that when memory is full)" if name == "SIGKILL" else ""
        print(f"error: {who} was killed by {name}{why}", file=sys.stderr)
        return 128 - code
    if code not in _TOLD:
        print(f"error: {who} ended with exit code {code}; why is said above", file=sys.stderr)
    return code


def _tell_alone(endpoint: str) -> int:
    """The launcher that all meet through has gone, or was never found; why is said there."""
    if _passed:
        print("stopped: so was the job's first launcher", file=sys.stderr)
        return EXIT_STOPPED
    print(f"error: no launcher answers at {endpoint}; what ended it, if it ran, is said there", file=sys.stderr)
    return 1
