"""Progress with ETA on long work, printed by rank 0 alone."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from synpro_engine.dist.topology import Topology

_SHOWN_AFTER_S = 3.0


def progress(total: int | None, description: str, unit: str, topology: Topology, initial: int = 0) -> tqdm[Any]:
    """A bar to `update(n)` and `set_postfix`; close it or use it in a `with`. total: None where it is not known.

    On a terminal it redraws in place; in a log file it writes a line now and then instead of thousands.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit if unit == "B" else " " + unit,
        unit_scale=unit == "B",  # MB/s, not ten digits
        disable=not topology.is_main,
        # A log keeps every redraw as a line.
        mininterval=0.2 if terminal else 15.0,
        dynamic_ncols=terminal,
        smoothing=0.1,
    )


@contextlib.contextmanager
def elapsed(description: str) -> Iterator[None]:
    """A clock beside work that cannot say how far it is, from when it has taken a few seconds."""
    terminal, over = sys.stderr.isatty(), threading.Event()

    def tick() -> None:
        if over.wait(_SHOWN_AFTER_S):
            return
        with tqdm(
            desc=description, bar_format="{desc}: {elapsed} so far", leave=False, dynamic_ncols=terminal
        ) as clock:
            while not over.wait(1.0 if terminal else 60.0):
                clock.refresh()

    # A thread, since the work it stands beside gives no chance to redraw.
    thread = threading.Thread(target=tick, name="clock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def say(topology: Topology, message: str) -> None:
    """One line for the user, from rank 0, that does not tear a bar."""
    if topology.is_main:
        # stderr, so that what a command prints as its result can be piped.
        tqdm.write(message, file=sys.stderr)
