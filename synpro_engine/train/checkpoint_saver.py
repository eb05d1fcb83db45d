"""Checkpoints of a run, written while it waits or, from a copy on the host, while it trains on; and then copied.

In the background every rank's thread writes and hashes its own share, and rank 0's commits once it knows of all of
them. They agree through the job's key-value store and not in collectives. Those of a second thread would have to keep
one order with the training's on the same group; a group of its own would give up after `parallel.timeout_minutes` on a
rank whose disk is slow, and could not tell it from one that is dead; and a commit by the main threads at a later step
would keep all GPUs waiting while one rank pushes every file to the disk. In the store a wait lasts as long as the other
rank lives.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from synpro_engine.config import first_line, json_text
from synpro_engine.config.errors import RankFailed, TransientError
from synpro_engine.dist import Topology, on_main, say
from synpro_engine.dist.watch import is_loss
from synpro_engine.train.checkpoint import CheckpointDraft, save_checkpoint
from synpro_engine.train.engine import Engine
from synpro_engine.train.host_memory import HostMemory


class CheckpointSaver:
    """Writes one checkpoint at a time. As a context it waits for the one in hand, however the block is left."""

    def __init__(self, topology: Topology, *, background: bool) -> None:
        self._topology, self._background = topology, background
        self._host = HostMemory()
        self._thread: threading.Thread | None = None
        self._path: Path | None = None
        self._fault: BaseException | None = None

    def save(
        self,
        path: Path,
        engine: Engine,
        extra: Mapping[str, Any],
        *,
        parents: Mapping[str, Path],
        seed: int | None,
        then: Callable[[], None],
        last: Callable[[], None],
    ) -> None:
        """`save_checkpoint`; on rank 0 `then`, once the checkpoint is there, and `last`, always behind training.

        In the background it returns as soon as the state is copied; faults are raised by `check` and `finish`.
        Collective.
        """
        if self._thread is not None and self._thread.is_alive():
            say(self._topology, f"{path.name}: waits until {self._path} is written")
        self.finish()
        self._path = path
        if self._background:
            draft = CheckpointDraft.of(path, engine, extra, parents=parents, seed=seed, host=self._host)
            # Drawn here, for all waits of a job are counted in the order of the main threads.
            key = self._topology.watch.next_key("checkpoint")
            agree = partial(self._agree, draft, key, then)
            self._begin(*((agree, last) if self._topology.is_main else (agree,)))
        else:
            save_checkpoint(path, engine, extra, parents=parents, seed=seed)
            on_main(self._topology, then)
            self.behind(path, last)

    def behind(self, path: Path, last: Callable[[], None]) -> None:
        """Do on rank 0 what no step waits for, with the checkpoint at `path`."""
        self._path = path
        if self._topology.is_main:
            self._begin(last)

    def _begin(self, *works: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=self._run, args=works, name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self, *works: Callable[[], None]) -> None:
        try:
            for work in works:
                work()
        except OSError as fault:  # what refused was not the writing: an old checkpoint that cannot be removed, say
            self._fault = TransientError(f"{self._path}: {first_line(fault)}")
        except BaseException as fault:  # raised by the main thread, at the next step
            self._fault = fault

    def _agree(self, draft: CheckpointDraft, key: str, then: Callable[[], None]) -> None:
        """Write this rank's share, and return when the checkpoint is there."""
        topology, watch, written = self._topology, self._topology.watch, draft.write()
        if not topology.is_main:
            watch.put(f"{key}/{topology.rank}", json_text(written))
            watch.wait(key, 0)
            watch.forget(key)
            return
        of_all = [written]
        for rank in range(1, topology.world_size):
            of_all.append(json.loads(watch.wait(f"{key}/{rank}", rank)))
            watch.drop(f"{key}/{rank}")
        draft.commit(of_all)
        then()
        if topology.world_size > 1:
            watch.put(key)

    def check(self) -> None:
        """Raise what the writing of a checkpoint failed with on this rank, which ends the job with its name."""
        if self._fault is not None:
            raise self._fault

    def finish(self) -> None:
        """Wait until the checkpoint in hand is there; raises as `check` does."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # With a rank that is gone there is nothing to wait for: the checkpoint will never be whole.
        if self._thread is not None and not (isinstance(error, RankFailed) or (error is not None and is_loss(error))):
            self._thread.join()
            self._host.release()
