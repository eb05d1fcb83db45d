"""A run's checkpoints: which one it goes on from, how one is written, and which stay, here and in a second place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synpro_engine.dist import Topology, on_main, say
from synpro_engine.train.checkpoint_copies import (
    Copies,
    LocalCopies,
    bring_back,
    forget_brought,
    newest_sound_checkpoint,
    open_copies,
)
from synpro_engine.train.checkpoint_directory import CHECKPOINTS, step_of, step_path
from synpro_engine.train.checkpoint_saver import CheckpointSaver
from synpro_engine.train.config import TrainConfig
from synpro_engine.train.engine import Engine


class RunCheckpoints:
    """Those of the run in `run`, and their copies where `config` names a place for them. All methods are collective."""

    def __init__(self, run: Path, config: TrainConfig, topology: Topology) -> None:
        self._run, self._config, self._topology = run, config, topology
        self._copies = open_copies(config.checkpoint_copy)
        self.saver = CheckpointSaver(topology, background=config.async_checkpoints)
        self.newest: Path | None = None
        """The saver may still be writing it."""

    def at(self, step: int) -> Path:
        """Where the checkpoint of a step lies, or would."""
        return step_path(self._run / CHECKPOINTS, step)

    def find(self) -> Path | None:
        """The newest sound checkpoint of both places; from a store it is brought here, until `leave`."""
        return newest_sound_checkpoint(self._run, self._copies, self._topology)

    def leave(self) -> None:
        """Remove what `find` brought: by now the run has taken it up, or will not."""
        if self._topology.is_main:
            forget_brought(self._run)

    def begin(self) -> None:
        """Begin, where `find` found nothing."""
        self._set_aside(-1, -1)

    def take_up(self, found: Path) -> None:
        """Go on from what `find` found, once it is known to be of this run."""
        newest, copies, step = self.at(step_of(found)), self._copies, step_of(found)
        # What lies here goes before its copy: where the copy was found, what lies here of its step is damaged.
        self._set_aside(step if found == newest else step - 1, step)
        if found != newest:
            on_main(self._topology, lambda: bring_back(found, self._run, copies))
        self.newest = newest
        if copies is not None:  # a kill may have come before its copy
            self.saver.behind(newest, lambda: copies.put(newest, self._run))

    def _set_aside(self, here: int, there: int) -> None:
        """Rename what is no sound checkpoint, in both places: those newer than these steps, and the like."""

        def work() -> list[Path]:
            aside = LocalCopies(self._run / CHECKPOINTS).set_aside(here)
            return aside if self._copies is None else aside + self._copies.set_aside(there)

        for left in on_main(self._topology, work):
            say(self._topology, f"{left}: no sound checkpoint; it goes once training is past its step")

    def save(
        self,
        engine: Engine,
        extra: Mapping[str, Any],
        *,
        first_step: int,
        start: Path | None,
        seed: int | None,
        prune: bool = True,
        last: bool = False,
    ) -> None:
        """Write the engine's step, and remove what is not to be kept once that is there.

        first_step: the one that the run began at; start: the checkpoint that it began from. prune: False leaves older
        ones, as where nobody knows yet whether this one is to be gone on from. last: the job ends with it.
        """
        path, old, every = self.at(engine.step_index), self.newest, self._config.checkpoint_every

        def tidy(place: Copies) -> None:
            if not prune:
                return
            # The checkpoint of a stop between two regular ones goes, so that a run keeps what it keeps without stops.
            if old is not None and old != path and (every == 0 or (step_of(old) - first_step) % every):
                place.remove(step_of(old))
            kept = self._config.keep_every
            place.remove_older(self._config.keep_checkpoints, lambda step: kept > 0 and (step - first_step) % kept == 0)

        def copy() -> None:
            if self._copies is not None:
                self._copies.put(path, self._run, last=last)
                tidy(self._copies)

        here = LocalCopies(path.parent)
        parents = {} if start is None else {"start": start}
        self.saver.save(path, engine, extra, parents=parents, seed=seed, then=lambda: tidy(here), last=copy)
        self.newest = path
