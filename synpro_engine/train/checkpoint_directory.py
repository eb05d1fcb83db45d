"""The checkpoints that a run goes on from: where each lies, which is the newest sound one, what stays and is copied."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from synpro_engine.config import (
    UserError,
    atomic_write_text,
    check_replaceable,
    first_line,
    partial_path,
    publish,
    read_manifest,
    remove_directory,
    sha256_file,
    verify_artifact,
)
from synpro_engine.config.artifact import MANIFEST, PARTIAL, REMOVING
from synpro_engine.config.errors import TransientError
from synpro_engine.dist import Topology, on_main
from synpro_engine.train.metrics import METRICS

CHECKPOINTS = "checkpoints"
"""Below a run's directory: where its checkpoints to go on from lie, each at its `step_path`."""
_COMPARED = 1 << 16
"""Bytes at a copy's end, by which it is known to be how a record begins."""
DAMAGED = ".damaged"
"""Behind the name of what was found to be no sound checkpoint, until training is past its step."""


def step_path(directory: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return directory / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The steps after which the checkpoint at a `step_path` was written, whatever follows in its name."""
    return int(path.name.removeprefix("step-").partition(".")[0])


def complete_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints by step, as this rank sees them; not collective.

    One without a manifest is no more than the rest of an interrupted copy or removal.
    """
    return [path for path in _named(directory) if (path / MANIFEST).is_file()]


def _named(directory: Path, ending: str = "") -> list[Path]:
    """What lies at a `step_path`, with so much behind it, by step."""
    # The glob also finds `.partial` and others, which must never be gone on from.
    found = [path for path in directory.glob("step-*") if re.fullmatch(rf"step-\d{{8,}}{ending}", path.name)]
    return sorted(found, key=step_of)


def newest_checkpoint(directory: Path, topology: Topology) -> Path | None:
    """The complete checkpoint of the highest step below `directory`, as rank 0 sees it. Collective."""
    # On a network file system each rank may see another newest checkpoint, and they would go on from different steps.
    return on_main(topology, lambda: (complete_checkpoints(directory) or [None])[-1])


def copy_checkpoint(path: Path, directory: Path) -> None:
    """Copy the checkpoint at `path` to the same name in `directory`, where it appears whole or not at all.

    Nothing is done where it is there already, and sound. Raises UserError for what cannot be written, and where the
    copy is not what the manifest says.
    """
    copy, manifest = directory / path.name, read_manifest(path)
    partial = partial_path(copy)
    try:
        if (copy / MANIFEST).is_file():
            with contextlib.suppress(UserError):  # damaged: made anew
                if verify_artifact(copy).check == manifest.check:
                    return
        check_replaceable(copy, manifest.kind)
        shutil.rmtree(partial, ignore_errors=True)  # what an interrupted copy left
        for name, digest in manifest.files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / name, partial / name)
            # Read again: what the other file system took is what a lost checkpoint will be mended by.
            if sha256_file(partial / name) != digest:
                raise UserError(f"{partial / name}: is not what was copied there from {path / name}")
        atomic_write_text(partial / MANIFEST, (path / MANIFEST).read_text(encoding="utf-8"))
        publish(partial, copy)
    except OSError as error:
        raise TransientError(f"{copy}: cannot be copied from {path} ({first_line(error)})") from error


def copy_record(directory: Path, copies: Path) -> None:
    """Copy the record of steps beside the copies of checkpoints, where it is the longer of the two.

    Where the copy is how the record begins, what came later is added to it: all of it with each checkpoint would be
    more and more. Raises UserError for what cannot be written.
    """
    here, there = directory / METRICS, copies / METRICS
    try:
        if not here.exists():
            return
        held = there.stat().st_size if there.exists() else 0
        with here.open("rb") as record:
            # The last line may be half a one, as after a kill: whoever reads it passes it over.
            longer = record.seek(0, os.SEEK_END) > held
            if longer and held and _ends_with(there, record, held):
                record.seek(held)
                with there.open("ab") as copy:
                    shutil.copyfileobj(record, copy)
                    copy.flush()
                    os.fsync(copy.fileno())
            elif longer:
                record.seek(0)
                atomic_write_text(there, record.read().decode("utf-8", errors="ignore"))
    except OSError as error:
        raise TransientError(f"{there}: cannot be copied from {here} ({first_line(error)})") from error


def _ends_with(copy: Path, record: BinaryIO, held: int) -> bool:
    """Whether the `held` bytes of a copy end as those many of the record do: of one that was gone on with from an
    earlier step the last line, which has its time, is another.
    """
    begin = max(0, held - _COMPARED)
    record.seek(begin)
    with copy.open("rb") as file:
        file.seek(begin)
        return file.read() == record.read(held - begin)


def set_aside(directory: Path, newest: int) -> list[Path]:
    """Rename what is newer than the step `newest`, that of the newest sound one, or has no manifest; the new names.

    Under its own it would count among those that are kept, and be in the way of the next checkpoint of its step.
    """
    damaged = [path for path in _named(directory) if step_of(path) > newest or not _is_described(path)]
    aside = [path.with_name(path.name + DAMAGED) for path in damaged]
    for path, new in zip(damaged, aside, strict=True):
        remove_directory(new)  # an earlier one of the same step
        path.rename(new)
    return aside


def _is_described(path: Path) -> bool:
    try:
        read_manifest(path)
    except UserError:
        return False
    return True


def prune_checkpoints(directory: Path, keep: int, topology: Topology) -> None:
    """`remove_older` on rank 0. Collective."""
    on_main(topology, lambda: remove_older(directory, keep))


def remove_older(directory: Path, keep: int, stays: Callable[[int], bool] = lambda step: False) -> None:
    """Remove all but the newest `keep` checkpoints below `directory`, and what kills and damage left of others.

    stays: whether a step's checkpoint is kept however old it is. While none is written there.
    """
    assert keep >= 1
    # A kill while a checkpoint is deleted, or written at a step where none is due, leaves these names, which no later
    # save uses: nobody else would remove them.
    for left in (*directory.glob(f"step-*{REMOVING}"), *directory.glob(f"step-*{PARTIAL}")):
        shutil.rmtree(left)
    complete = complete_checkpoints(directory)
    for left in _named(directory, DAMAGED):
        if complete and step_of(left) <= step_of(complete[-1]):
            remove_directory(left)
    for path in complete[:-keep]:
        if not stays(step_of(path)):
            remove_directory(path)
