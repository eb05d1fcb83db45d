"""What ranks tell each other outside collectives: signs of life, the fault that ends the job, the wish to stop.

A collective waits for ranks that may never come, and gives up after a fixed time however well they are. So long waits
go through the job's key-value store, where each rank shows every few seconds that it lives; and a rank that fails says
so there, for the others to leave whatever they wait in.

Keys: `alive/RANK` counts up, `faults` counts failing ranks, `fault` is the first one's, `said/HASH` counts ranks that
fail with the same words, `told` says that the user knows it, `known` counts ranks that do, `hung` counts ranks that
found training to hang, `place/RANK` is where each is then, `stop` names a signal, `left` counts ranks that have ended
in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch.distributed as dist
from tqdm import tqdm

from synpro_engine.config import UserError, first_line, hash_json, json_text
from synpro_engine.config.errors import REFUSALS, RankFailed
from synpro_engine.dist.hang import HangWatch, Place
from synpro_engine.dist.signals import StopWish

_LOOK_S = 0.5  # between two looks at the store
_BEAT_S = 2.0  # between two signs of life
_GRACE_S = 2.0  # for a rank to end by itself after another one's fault
_FAREWELL_S = 20.0
_ANSWER_S = 10.0  # for every rank to say where it is when training hangs
# As of a rank that SIGABRT ended, which is what NCCL's own watchdog does: what begins jobs again that lost a rank
# begins those again that hang.
_HUNG = 134


class LostRankError(Exception):
    """Another rank is gone, or cannot be reached."""


@dataclass(frozen=True)
class _Fault:
    """The first fault: who has it, told in one line, and the code that all ranks exit with."""

    line: str
    code: int


class Watch:
    """One rank's side of what ranks tell each other. A job of one process has no store, and uses `wish` alone."""

    def __init__(
        self, store: dist.Store | None, rank: int, world_size: int, *, local_rank: int, silence_s: float, hang_s: float
    ) -> None:
        """store: a connection of its own. silence_s: how long a rank without a sign of life is thought to live.

        hang_s: how long a part of training may take (see `HangWatch`).
        """
        self.wish, self.hang = StopWish(tell=rank == 0), HangWatch(hang_s)
        self._store, self._rank, self._world_size, self._silence_s = store, rank, world_size, silence_s
        self._speaks = local_rank == 0  # to its machine's terminal or log
        self._lock = threading.Lock()  # one user of the connection at a time
        self._beats, self._beaten, self._waits = 0, float("-inf"), 0
        self._waits_of: dict[str, int] = {}
        self._fault: _Fault | None = None
        self._answers_by: float | None = None
        """When this rank, which found training to hang first, names the one that is behind."""
        self._placed = False
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        if store is not None:
            # The first sign of life comes before anything may be waited for: `wait` reads
            # it and would block without one.
            self._look(store)
            self._thread.start()

    def _run(self) -> None:
        # In a thread of its own, for the main one may sit in a collective for many minutes and must count as alive.
        while self._fault is None and not self._leaving.wait(_LOOK_S):
            try:
                with self._held(self._silence_s) as store:
                    self._look(store)
            except (dist.DistError, LostRankError) as error:
                # A store that is gone may only mean that the job ended in order a moment ago.
                if not self._leaving.wait(_GRACE_S):
                    self.wish.void = True
                    self._fault = _Fault(f"{_who(self._rank)} failed: {_lost(error)}", 1)
                    _tell(self._fault)
        # The main thread may be anywhere, in a collective too; it gets the time to end by itself.
        if self._fault is not None and not self._leaving.wait(_GRACE_S):
            _exit(self._fault.code)

    def _look(self, store: dist.Store) -> None:
        """Show that this rank lives; see whether another one has failed, and whether one was asked to stop."""
        now = time.monotonic()
        if now - self._beaten >= _BEAT_S:
            self._beats, self._beaten = self._beats + 1, now
            store.set(f"alive/{self._rank}", str(self._beats))
        # `check` and never a plain `get` here: that would wait for a key that nobody may ever set.
        if store.check(["fault"]):
            self._take(store)
        elif self.hang.hangs or store.check(["hung"]):
            self._tell_place(store, now)
        # A wish of another rank is taken over; one of this rank is told to all. So it does
        # not matter whom a signal reached.
        if store.check(["stop"]):
            if self.wish.signal is None:
                self.wish.wish(store.get("stop").decode())
                self.wish.nudge()
        elif self.wish.signal is not None:
            store.set("stop", self.wish.signal)

    def _tell_place(self, store: dist.Store, now: float) -> None:
        """Training hangs somewhere: say where this rank is. The first to notice names the one that is behind."""
        if not self._placed:
            self._placed = True
            if store.add("hung", 1) == 1:
                self._answers_by = now + _ANSWER_S
            place = self.hang.place()
            self.hang.dump(self._rank)
            store.set(f"place/{self._rank}", json_text(asdict(place)))
        if self._answers_by is None:
            return
        there = [rank for rank in range(self._world_size) if store.check([f"place/{rank}"])]
        if (len(there) == self._world_size or now > self._answers_by) and store.add("faults", 1) == 1:
            places = {rank: Place(**json.loads(store.get(f"place/{rank}"))) for rank in there}
            store.set("fault", json_text(asdict(_Fault(self.hang.verdict(places, self._world_size), _HUNG))))
            self._take(store)

    def _take(self, store: dist.Store) -> None:
        """Learn the job's fault, and tell it once to this rank's machine."""
        self.wish.void = True
        if self._fault is None:
            self._fault = _Fault(**json.loads(store.get("fault")))
            if self._speaks:
                _tell(self._fault)
            if self._rank == 0:
                store.set("told", "")
            store.add("known", 1)

    @contextlib.contextmanager
    def _held(self, patience_s: float) -> Iterator[dist.Store]:
        """The connection, for this thread alone.

        A call waits for ever for a store whose machine is lost or frozen; then the other thread, which cannot have the
        connection, is the one to raise LostRankError.
        """
        assert self._store is not None, "a job of one process has nobody to tell"
        # The other thread may hang in a call into the store for ever: torch's calls know no time limit of ours.
        if not self._lock.acquire(timeout=patience_s):
            raise LostRankError(f"it has not answered for {patience_s:.0f} s")
        try:
            yield self._store
        finally:
            self._lock.release()

    def put(self, key: str, value: str = "") -> None:
        """Set a key for those that wait for it."""
        with self._held(self._silence_s) as store:
            store.set(key, value)

    def wait(self, key: str, rank: int) -> str:
        """The value of `key` when `rank` has set it, however long that takes.

        Raises LostRankError when that rank has shown no sign of life for `silence_s` or the store is gone, RankFailed
        when some rank failed.
        """
        # By this rank's clock alone: signs of life are counts, for clocks of machines differ.
        begun = changed = time.monotonic()
        last_beat = b""
        while True:
            if self._fault is not None:
                raise RankFailed(self._fault.code)
            try:
                with self._held(self._silence_s) as store:
                    if store.check([key]):
                        return store.get(key).decode()
                    beat = store.get(f"alive/{rank}")
            except (dist.DistError, LostRankError) as error:
                raise LostRankError(_lost(error)) from error
            now = time.monotonic()
            last_beat, changed = beat, changed if beat == last_beat else now
            # Only a count that no longer moves is silence; a rank may be busy for hours.
            if now - changed > self._silence_s:
                raise LostRankError(f"rank {rank} has shown no sign of life for {now - changed:.0f} s")
            # Often at first, for most waits are short, and then ever less: many ranks ask one store.
            time.sleep(min(_LOOK_S, 0.0005 + (now - begun) / 20))

    def meet(self) -> None:
        """Wait until every rank is here. Raises as `wait` does."""
        if self._store is None:
            return
        key = self.next_key("meet")
        if self._rank == 0:
            # One rank counts, so that each wait knows whose signs of life to look at.
            for rank in range(1, self._world_size):
                self.wait(f"{key}/{rank}", rank)
                self.drop(f"{key}/{rank}")
            self.put(key)
        else:
            self.put(f"{key}/{self._rank}")
            self.wait(key, 0)
            self.forget(key)

    def drop(self, key: str) -> None:
        """Delete a key that this rank alone waits for."""
        with self._held(self._silence_s) as store:
            store.delete_key(key)

    def forget(self, key: str, readers: int | None = None) -> None:
        """Delete a key that `readers` ranks wait for (None: all but its owner), once the last of them is here."""
        with self._held(self._silence_s) as store:
            # Counted in the store, where it is atomic: a key that went before the last reader
            # came would leave that one waiting.
            if store.add(f"{key}/read", 1) == (self._world_size - 1 if readers is None else readers):
                store.delete_key(key)
                store.delete_key(f"{key}/read")

    def next_key(self, name: str) -> str:
        """A key of its own for each wait; the same on all ranks, which come to their waits in the same order."""
        # Every rank must pass every wait in the same order; a wait under an `if` that ranks
        # decide differently would hang all.
        self._waits += 1
        return f"{name}/{self._waits}"

    def next_key_of(self, group: str) -> str:
        """The same for the ranks of one group alone, named alike on all of them."""
        number = self._waits_of[group] = self._waits_of.get(group, 0) + 1
        return f"{group}/{number}"

    def leave(self) -> None:
        """End watching, in order; rank 0, whose process may hold the store, waits for the others."""
        if self._store is not None:
            self._leaving.set()
            self._thread.join()
            if self.wish.signal is not None:  # it may have come since the last look, and the others still work
                self._store.set("stop", self.wish.signal)
            # Rank 0 goes last, and not without an end: a rank that was killed after its work would never be counted.
            left, end = self._store.add("left", 1), time.monotonic() + _FAREWELL_S
            while self._rank == 0 and left < self._world_size and time.monotonic() < end:
                time.sleep(0.005)
                left = self._store.add("left", 0)
        self.wish.restore()

    def fail(self, error: BaseException) -> int:
        """Tell every rank and the user that this one failed; the code to exit with. Afterwards no group may be used.

        The fault that is told is the first one's; those of ranks that it struck are not. One of the user's that every
        rank finds, as in a setting, is told of none.
        """
        self._leaving.set()
        self.wish.void = True
        fault_here = _Fault(f"{_who(self._rank)} failed: {_cause(error)}", 2 if _mendable(error) else 1)
        # Whatever hangs below, this process ends: a failing rank that lives on would keep
        # its GPU and the others waiting.
        guard = threading.Timer(4 * _GRACE_S, _leave_now, [fault_here])  # for a store that does not answer
        guard.daemon = True
        guard.start()
        told = False
        try:
            with self._held(_GRACE_S) as store:
                if self._fault is None and isinstance(error, UserError) and self._all_say(store, error):
                    fault_here = _Fault(_cause(error), fault_here.code)
                # The first to count is the one that is told: ranks that it struck fail with errors
                # about it, which name no cause.
                if self._fault is None and store.add("faults", 1) == 1:
                    # A traceback helps where the bug is here. Of a lost peer it would show some collective.
                    if not (is_loss(error) or _mendable(error)):
                        traceback.print_exception(error)
                    store.set("fault", json_text(asdict(fault_here)))
                end = time.monotonic() + 2 * _GRACE_S
                while self._rank and not (told := store.check(["told"])) and time.monotonic() < end:
                    time.sleep(0.02)
                # Only now: rank 0's process may hold the store, and goes when the others know what happened.
                self._take(store)
                if self._rank and not told and not self._speaks:
                    _tell(fault_here)
                while self._rank == 0 and store.add("known", 0) < self._world_size and time.monotonic() < end:
                    time.sleep(0.02)
        except (dist.DistError, LostRankError):  # the store went with the rank or launcher that held it
            if not told:
                _tell(fault_here)
        guard.cancel()
        return fault_here.code if self._fault is None else self._fault.code

    def _all_say(self, store: dist.Store, error: UserError) -> bool:
        """Whether all ranks fail with the same words; waits a moment for those that are as far."""
        key, end = f"said/{hash_json(str(error))}", time.monotonic() + _GRACE_S
        number = store.add(key, 1)
        while number < self._world_size and time.monotonic() < end:
            time.sleep(0.02)
            number = store.add(key, 0)
        return number >= self._world_size


def _who(rank: int) -> str:
    return f"rank {rank} on {socket.gethostname()}"


def _tell(fault: _Fault) -> None:
    tqdm.write(f"error: {fault.line}", file=sys.stderr)
    sys.stderr.flush()


def _leave_now(fault: _Fault) -> None:
    _tell(fault)
    _exit(fault.code)


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _mendable(error: BaseException) -> bool:
    """Whether the user can mend it, as a file system that refuses: then no traceback is told."""
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in REFUSALS)


def _cause(error: BaseException) -> str:
    said = first_line(error)
    if isinstance(error, LostRankError) or _mendable(error):
        return said
    if is_loss(error):
        return f"another rank is gone ({said})"
    if isinstance(error, RuntimeError) and "gloo" in said and "imed out" in said:
        return f"a collective took longer than `parallel.timeout_minutes` ({said})"
    kind = type(error).__name__
    return kind if said == kind else f"{kind}: {said}"


def is_loss(error: BaseException) -> bool:
    """Whether another rank is gone: torch has errors of its own for that, gloo raises RuntimeError."""
    # By words, for gloo raises nothing else. Its "Connection closed by peer" is what a killed rank looks like.
    from_gloo = isinstance(error, RuntimeError) and "gloo" in str(error) and "onnection" in str(error)
    return from_gloo or isinstance(error, (LostRankError, dist.DistError))


def _lost(error: BaseException) -> str:
    return f"the job's store is gone, with the rank or launcher that holds it ({first_line(error)})"
