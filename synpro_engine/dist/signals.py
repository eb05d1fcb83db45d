"""How a job ends early. SIGTERM, SIGUSR1 and the first Ctrl-C are wishes that the work in hand fulfils when it can.

This module sees its own process alone; that several ranks stop at the same step is the work of `watch` and of the
loops. It does not import torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from synpro_engine.config.errors import Stopped

_WISHES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_ECHO_S = 1.0  # a launcher passes Ctrl-C on to ranks that the terminal has told already


class StopWish:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self, *, tell: bool) -> None:
        """tell: whether to answer the user on the terminal."""
        self.signal: str | None = None
        self.void = False
        """Set when the job ends otherwise: its launcher then sends signals to every rank."""
        self._tell, self._breaking, self._next = tell, False, ""
        self._interrupted: float | None = None
        self._before: dict[int, object] = {}

    def listen(self) -> None:
        """Take the signals over, where this is the main thread (elsewhere Python does not allow it)."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in _WISHES}

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}

    def _receive(self, number: int, frame: object) -> None:
        # Signals of a job that is ending anyway are its launcher's: answering them would
        # hide the cause behind a "stopped".
        if self.void:
            return
        now, first = time.monotonic(), self._interrupted
        if number == signal.SIGINT and first is None:
            self._interrupted = now
        if self.signal is None:
            self.wish(signal.Signals(number).name)
        # The second Ctrl-C is no wish: the default handler ends the process, with what the last checkpoint holds.
        # Second of this process: where it waits in a collective, another rank's wish is known before its own is heard.
        elif number == signal.SIGINT and first is not None and now - first > _ECHO_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._breaking:
            self._breaking = False
            raise Stopped(f"{self.signal}: left at once, {self._next}")

    def wish(self, name: str) -> None:
        """Note that signal `name` reached some rank of the job."""
        self.signal = name
        if self._tell:  # by the system call: a handler may have broken into a write
            again = "; again: at once" if name == "SIGINT" else ""
            told = f"finishing the step in hand, then saving{again}"
            os.write(2, f"\n{name}: {'leaving this work' if self._breaking else told}\n".encode())

    def nudge(self) -> None:
        """Have the main thread notice a wish that another thread noted, where it waits for nothing else."""
        if self._breaking:
            # Python runs handlers in the main thread, and only one of them can raise into
            # the work that is in hand there.
            os.kill(os.getpid(), signal.SIGUSR1)

    @contextlib.contextmanager
    def breakable(self, next_time: str = "this work begins anew") -> Iterator[None]:
        """Within: long work that may be left at any point; a wish breaks it off with `Stopped`.

        next_time: what becomes of it, for the user.
        """
        if self.signal is not None:
            raise Stopped(f"{self.signal}: left before long work")
        # Where no handler of ours is installed, a nudge by SIGUSR1 would end the process.
        self._breaking, self._next = bool(self._before), next_time
        try:
            yield
        finally:
            self._breaking = False
