"""Stages: named steps whose result is one artifact, done once, and never replaced without being removed on demand.

When a stage must run, and how its result appears; what it computes is in `steps`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from synpro_engine.config import (
    Manifest,
    Record,
    UserError,
    atomic_write_text,
    check_replaceable,
    json_text,
    partial_path,
    publish,
    read_json,
    read_manifest,
    read_records,
    remove_directory,
    write_manifest,
)
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.run_layout import TIMES
from synpro_engine.dist import Layout, Stopped, Topology, asked_to_stop, barrier, on_main, say, verify_shared
from synpro_engine.dist.hashing import hash_new_files
from synpro_engine.model.layers import forget_masks

_SPENT = "seconds"
"""In the note on a stage in work: what earlier attempts took."""


class _Time(Record):
    """One line of `TIMES`."""

    stage: str
    seconds: float
    ended: float


class Work(Protocol):
    """What a stage does: fills the directory `into`, from this rank's place in the stage's layout. Collective."""

    def __call__(self, into: Path, *, topology: Topology) -> object:
        """Do it, or go on with what an interrupted attempt left in `into`."""
        ...


@dataclass(frozen=True)
class Stage:
    """One step of the cycle.

    `work` runs on every rank and fills the directory that will be the artifact; what an interrupted attempt with the
    same inputs left there is still there, so long stages resume. `config` is what the result depends on beside the
    parents, and is stored in the artifact's manifest.
    """

    name: str
    """Also the artifact's path below the run's directory, as in `round-1/probe`."""
    command: str
    """The `synpro` command that brings a run up to this stage."""
    work: Work
    config: Mapping[str, Any]
    parents: tuple[str, ...] = ()
    seed: int = 0
    layout: Layout | None = None
    """How the job is divided for it; None where it does not matter."""
    arm: str | None = None
    """Whose it is, of a recipe's arms: of what several have in common, the first one's."""
    opens: frozenset[str] = frozenset()
    """Commands that bring up stages which only its result shows."""


def stale_stages(directory: Path, stages: Sequence[Stage]) -> list[Stage]:
    """Stages that are there, or half done, and were made with other settings or from what is no longer the case.

    With them all that was made from them. Half done counts once there is something to resume from.
    """
    stale: dict[str, Stage] = {}
    for stage in stages:
        path, note = directory / stage.name, _note(directory, stage)
        # Stages stand in order, so a parent's own case is decided by now, and staleness runs down the whole line.
        if any(parent in stale for parent in stage.parents):
            changed = path.exists() or note.exists()
        elif (path / MANIFEST).exists():
            manifest = read_manifest(path)
            changed = _differs(directory, stage, manifest.config, manifest.parents)
        else:
            # Half done work without a checkpoint in it costs nothing, and is replaced without a question.
            begun = read_json(note) if note.exists() and _resumable(partial_path(path)) else None
            changed = begun is not None and _differs(directory, stage, begun["config"], begun["parents"])
        if changed:
            stale[stage.name] = stage
    return list(stale.values())


def _differs(directory: Path, stage: Stage, config: Mapping[str, Any], parents: Mapping[str, str]) -> bool:
    """Whether a stage that was made with `config` from `parents` (by content hash) would be another one now."""
    # Compared as JSON reads it back: a tuple would differ from its own list for ever.
    if config != _plain(stage.config) or set(parents) != set(stage.parents):
        return True
    # A parent that is missing is made anew first; only then it shows whether it is another one.
    there = [parent for parent in stage.parents if (directory / parent / MANIFEST).exists()]
    return any(parents[parent] != read_manifest(directory / parent).content_hash for parent in there)


def remove_stages(directory: Path, stages: Sequence[Stage]) -> None:
    """Remove stages, finished or half done; the last ones first, so that a kill leaves none without its parents."""
    for stage in reversed(stages):
        remove_directory(directory / stage.name)
        remove_directory(partial_path(directory / stage.name))
        _note(directory, stage).unlink(missing_ok=True)


def _resumable(partial: Path) -> bool:
    """Whether an interrupted stage left checkpoints or finished batches."""
    return any(next(partial.rglob(name), None) is not None for name in (MANIFEST, "*.ledger"))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """As it is read back from JSON."""
    return json.loads(json_text(config))


def _note(directory: Path, stage: Stage) -> Path:
    """Beside the partial directory: from which inputs the work in it was begun."""
    return _beside(partial_path(directory / stage.name))


def _beside(partial: Path) -> Path:
    # Beside it and not inside, for all that lies inside becomes part of the artifact.
    return partial.with_name(partial.name + ".inputs.json")


def settings_begun_with(into: Path) -> dict[str, Any]:
    """The settings, as they are recorded, of the stage whose work goes on in the directory `into`."""
    return read_json(_beside(into))["config"]


def _prepare(directory: Path, stage: Stage, redo: bool) -> bool:
    """On rank 0: decide whether the stage must run, and lay out its partial directory. True: it must."""
    parents = {parent: read_manifest(directory / parent).content_hash for parent in stage.parents}
    inputs: dict[str, Any] = {"parents": parents, "config": _plain(stage.config)}
    path, note = directory / stage.name, _note(directory, stage)
    if (path / MANIFEST).exists():
        manifest = read_manifest(path)
        # Versions are not compared: another release of a library does not throw a run away, and the manifest names it.
        if {"parents": manifest.parents, "config": manifest.config} == inputs:
            note.unlink(missing_ok=True)  # a kill may have come before the end of `_finish`
            return False
        if not redo:
            raise UserError(f"{path}: {_what_changed(stage, manifest, parents)}; --redo makes it anew, and removes it")
    check_replaceable(path, stage.name)
    partial, spent = partial_path(path), 0.0
    if partial.exists():
        begun = read_json(note) if note.exists() else {}
        if {name: begun.get(name) for name in inputs} == inputs:
            spent = begun.get(_SPENT, 0.0) + _attempt_seconds(partial, note)
        else:
            remove_directory(partial)  # begun from other inputs: of no use
    partial.mkdir(parents=True, exist_ok=True)
    # Before any work: what a kill leaves can then be told apart from work on other inputs.
    atomic_write_text(note, json_text({**inputs, _SPENT: spent}))
    return True


def _attempt_seconds(partial: Path, note: Path) -> float:
    """What an attempt that was stopped or killed took, as far as its files say: nothing else outlives a kill."""
    # By one clock, the file system's.
    written = max(path.lstat().st_mtime for path in (partial, *partial.rglob("*")))
    return max(0.0, written - note.stat().st_mtime)


def _what_changed(stage: Stage, manifest: Manifest, parents: Mapping[str, str]) -> str:
    """Why a stage that was not stale when the run began is so now."""
    if manifest.config != _plain(stage.config):
        return "its settings follow from stages that were made anew"
    # Such as one that was deleted to save room: training is another one each time, if only by its log.
    for name, content in parents.items():
        if manifest.parents.get(name) != content:
            return f"was made from another {name}, which was missing and has been made anew"
    return f"was made from more than it would be now ({', '.join(sorted(manifest.parents.keys() - parents))})"


def _finish(directory: Path, stage: Stage, seconds: float) -> None:
    """seconds: of this attempt."""
    path = directory / stage.name
    partial = partial_path(path)
    parents = {parent: directory / parent for parent in stage.parents}
    write_manifest(partial, stage.name, stage.config, parents, stage.seed)
    spent = read_json(_note(directory, stage))[_SPENT]
    # Rewritten and not appended: a stage that is made anew has one time.
    times = stage_times(directory) | {stage.name: (round(spent + seconds, 3), time.time())}
    lines = (json_text({"stage": name, "seconds": s, "ended": ended}) for name, (s, ended) in times.items())
    # First, for a stage that is there is not done again, and would have no time after a kill between the two.
    atomic_write_text(directory / TIMES, "".join(line + "\n" for line in lines))
    publish(partial, path)
    # Last: a note beside a finished stage is swept up at the next start, a partial
    # directory without one is thrown away.
    _note(directory, stage).unlink()


def run_stage(directory: Path, stage: Stage, topology: Topology, *, redo: bool = False) -> None:
    """Bring one stage's artifact into being, unless it is there and made from the present inputs.

    Raises UserError where it is there and made from others, unless `redo` allows to replace it; Stopped when the job
    was asked to stop before the stage began, or on the way.
    """
    # Between stages too: one that cannot be broken off would otherwise begin after the wish.
    if asked_to_stop(topology):
        raise Stopped(f"{directory}: stopped before {stage.name}")
    if not on_main(topology, lambda: _prepare(directory, stage, redo)):
        # What is there is built upon, so a file that was damaged since is found before the stages that would read it.
        verify_shared(directory / stage.name, topology)
        say(topology, f"[{stage.name}] there already")
        return
    say(topology, f"[{stage.name}] begins")
    begun = time.monotonic()
    # All ranks are here: making groups is collective, and none waits in it for one that is still at the stage before.
    place = topology if stage.layout is None else topology.divided(stage.layout)
    stage.work(partial_path(directory / stage.name), topology=place)
    forget_masks()  # the next stage's are of other lengths
    # Ranks may write files of their own: the stage is not over before the last one has closed them.
    barrier(topology)
    seconds = time.monotonic() - begun
    # All ranks hash; then the manifest on rank 0 finds every hash and reads nothing again.
    hash_new_files(partial_path(directory / stage.name), topology)
    on_main(topology, lambda: _finish(directory, stage, seconds))
    say(topology, f"[{stage.name}] done in {seconds:.1f} s")


def needed(stages: Sequence[Stage], command: str | None, only: Collection[str] = ()) -> list[Stage]:
    """The stages that a command brings up, of all arms or of those in `only`; None: every command."""
    of_arms = _with_parents(stages, {stage.name for stage in stages if not only or stage.arm in only})
    wanted = {stage.name for stage in of_arms if command is None or command == stage.command or command in stage.opens}
    if not wanted:
        whose = f" of {' and '.join(only)}" if only else ""
        raise UserError(f"this recipe has no stage{whose} for `{command or 'run'}`")
    return _with_parents(stages, wanted)


def _with_parents(stages: Sequence[Stage], names: Set[str]) -> list[Stage]:
    """The named stages and all that they are made from."""
    wanted = set(names)
    for stage in reversed(stages):  # parents stand before what is made from them
        if stage.name in wanted:
            wanted.update(stage.parents)
    return [stage for stage in stages if stage.name in wanted]


def stage_times(directory: Path) -> dict[str, tuple[float, float]]:
    """Per finished stage: seconds of all its attempts, and when it ended (seconds since the epoch)."""
    path = directory / TIMES
    if not path.exists():
        return {}
    return {time.stage: (time.seconds, time.ended) for time in read_records(path, _Time)}
