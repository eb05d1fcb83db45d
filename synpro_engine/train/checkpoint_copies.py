"""The second place of a run's checkpoints, `pretrain.checkpoint_copy`: a directory, or a folder of an object store.

Checkpoints have the names there that they have in the run's own directory, and the record of steps lies beside them.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from synpro_engine.config import UserError, atomic_write_text, read_manifest, remove_directory
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.dist import SharedTransientError, Topology, on_main, say, verify_shared
from synpro_engine.storage import RemoteFile, find_files, is_remote, joined, put_directory, put_file, remove_files
from synpro_engine.storage.fetching import fetch, listing_key
from synpro_engine.storage.stores import find_file
from synpro_engine.storage.writing import BEGUN
from synpro_engine.train.checkpoint_directory import (
    CHECKPOINTS,
    complete_checkpoints,
    copy_checkpoint,
    copy_record,
    remove_older,
    set_aside,
    step_of,
    step_path,
)
from synpro_engine.train.metrics import METRICS

BROUGHT = "brought"
"""Below a run's directory: a copy that was brought from a store, until the run goes on from it."""
_TENTH = 10
_STEP = re.compile(r"step-(\d{8,})")


class Copies(Protocol):
    """What is done at the second place. For rank 0; UserError, which names the place, where it refuses."""

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are whole, ascending."""
        ...

    def at_hand(self, step: int, aside: Path) -> Path:
        """One of them as a directory of this machine, which is made below `aside` where it is none yet."""
        ...

    def put(self, path: Path, directory: Path, *, last: bool = False) -> None:
        """Copy the checkpoint at `path`, unless it is there and sound, and the record of the run in `directory`.

        last: no checkpoint will follow, as far as is known.
        """
        ...

    def distrust(self, step: int) -> None:
        """Know that what is there of a step is damaged: the next checkpoint of it takes its place."""
        ...

    def set_aside(self, newest: int) -> list[Path]:
        """As `checkpoint_directory.set_aside`."""
        ...

    def bring_record(self, directory: Path) -> None:
        """Copy the record to `directory`, where it is the longer of the two."""
        ...

    def remove(self, step: int) -> None:
        """Remove a checkpoint; none of that step is no error."""
        ...

    def remove_older(self, keep: int, stays: Callable[[int], bool]) -> None:
        """As `checkpoint_directory.remove_older`."""
        ...


def open_copies(place: str | None) -> Copies | None:
    """The second place that a setting names; None for none."""
    if place is None:
        return None
    return StoredCopies(place) if is_remote(place) else LocalCopies(Path(place))


class LocalCopies:
    """In a directory."""

    def __init__(self, directory: Path) -> None:
        self._place = directory

    def steps(self) -> list[int]:
        """Of what has a manifest."""
        return [step_of(path) for path in complete_checkpoints(self._place)]

    def at_hand(self, step: int, aside: Path) -> Path:
        """Where it is."""
        return step_path(self._place, step)

    def put(self, path: Path, directory: Path, *, last: bool = False) -> None:
        """Copy both, and read the checkpoint again."""
        copy_checkpoint(path, self._place)
        copy_record(directory, self._place)

    def distrust(self, step: int) -> None:
        """Nothing: what is there is read before it is kept."""

    def set_aside(self, newest: int) -> list[Path]:
        """Rename them."""
        return set_aside(self._place, newest)

    def bring_record(self, directory: Path) -> None:
        """Copy it."""
        copy_record(self._place, directory)

    def remove(self, step: int) -> None:
        """Remove it, by a rename first."""
        remove_directory(step_path(self._place, step))

    def remove_older(self, keep: int, stays: Callable[[int], bool]) -> None:
        """Remove them."""
        remove_older(self._place, keep, stays)


class StoredCopies:
    """In a folder of an object store, where a checkpoint is whole once its manifest is there."""

    def __init__(self, address: str) -> None:
        self._place, self._damaged = address, set[int]()

    def _files(self) -> dict[int, list[RemoteFile]]:
        """By step, what is there of each checkpoint."""
        found: dict[int, list[RemoteFile]] = {}
        for file in find_files(self._place):
            folder, _, inner = file.address.removeprefix(self._place).strip("/").partition("/")
            if inner and (step := _STEP.fullmatch(folder)):
                found.setdefault(int(step[1]), []).append(file)
        return dict(sorted(found.items()))

    def _is_whole(self, step: int, files: list[RemoteFile]) -> bool:
        return joined(self._address(step), MANIFEST) in {file.address for file in files}

    def _address(self, step: int) -> str:
        return joined(self._place, step_path(Path(), step).name)

    def steps(self) -> list[int]:
        """Of what has a manifest."""
        return [step for step, files in self._files().items() if self._is_whole(step, files)]

    def at_hand(self, step: int, aside: Path) -> Path:
        """Bring it. Its files are compared with their hashes where it is loaded."""
        files = [file for file in self._files().get(step, []) if file.name != BEGUN]
        # By what is listed, so that half of a copy that was replaced since is not gone on with.
        path = step_path(aside / listing_key({file.address: file for file in files})[:16], step)
        fetch(files, self._address(step), path)
        return path

    def put(self, path: Path, directory: Path, *, last: bool = False) -> None:
        """Copy both. That a copy is sound is known by its manifest, and the sizes of what that lists.

        No object can be added to. So that a long run does not send more and more for each checkpoint, a record that is
        over a tenth of one is sent again where a tenth came to it, and with the last one.
        """
        step, address = step_of(path), self._address(step_of(path))
        sizes = {file.address: file.size for file in self._files().get(step, [])}
        manifest = find_file(joined(address, MANIFEST)) if sizes else None
        wanted = {joined(address, name): (path / name).stat().st_size for name in read_manifest(path).files}
        same = manifest is not None and manifest.read(0, manifest.size) == (path / MANIFEST).read_bytes()
        if not (same and wanted.items() <= sizes.items()) or step in self._damaged:
            put_directory(path, address)
            self._damaged.discard(step)
        record = directory / METRICS
        size, held = record.stat().st_size if record.exists() else 0, self._record_size()
        if size > held and (last or _TENTH * size <= sum(wanted.values()) or _TENTH * (size - held) >= size):
            # As it is now: training goes on writing to it while it is copied.
            with tempfile.TemporaryDirectory(prefix="synpro-") as folder:
                put_file(Path(shutil.copyfile(record, Path(folder, METRICS))), joined(self._place, METRICS))

    def distrust(self, step: int) -> None:
        """Remember it, for a manifest and sizes do not tell."""
        self._damaged.add(step)

    def set_aside(self, newest: int) -> list[Path]:
        """Nothing: what is distrusted counts as none, and what has no manifest is replaced."""
        return []

    def _record_size(self) -> int:
        there = find_file(joined(self._place, METRICS))
        return 0 if there is None else there.size

    def bring_record(self, directory: Path) -> None:
        """Read it."""
        there, here = find_file(joined(self._place, METRICS)), directory / METRICS
        if there is not None and not (here.exists() and here.stat().st_size >= there.size):
            # The last line may be half a one, as after a kill: whoever reads it passes it over.
            atomic_write_text(here, there.read(0, there.size).decode("utf-8", errors="ignore"))

    def remove(self, step: int) -> None:
        """Remove its manifest first, so that what a kill leaves is none."""
        files = [file.address for file in self._files().get(step, [])]
        manifest = joined(self._address(step), MANIFEST)
        remove_files(sorted(files, key=lambda address: address != manifest))

    def remove_older(self, keep: int, stays: Callable[[int], bool]) -> None:
        """Remove them, and what interrupted copies left of older steps."""
        files = self._files()
        whole = [step for step, of_it in files.items() if self._is_whole(step, of_it) and step not in self._damaged]
        going = [step for step in whole[:-keep] if not stays(step)]
        left = [step for step in files if step not in whole and whole and step < whole[-1]]
        for step in (*going, *left):
            self.remove(step)


def newest_sound_checkpoint(run: Path, copies: Copies | None, topology: Topology) -> Path | None:
    """The newest checkpoint of the run or of its copies whose files are as they were written. Collective.

    A copy that lies in a store is brought to the run's directory first. What is damaged is told and passed over;
    UserError, with the first damage, where nothing sound is left, and SharedTransientError where it is not known.
    """
    directory, aside = run / CHECKPOINTS, run / BROUGHT

    def found() -> list[tuple[int, bool]]:
        here = [(step_of(path), False) for path in complete_checkpoints(directory)]
        there = [] if copies is None else [(step, True) for step in copies.steps()]
        # Of one step that which lies here comes first.
        return sorted((*here, *there), key=lambda one: (-one[0], one[1]))

    def at_hand(step: int, copied: bool) -> Path:
        return copies.at_hand(step, aside) if copied and copies is not None else step_path(directory, step)

    fault: UserError | None = None
    for step, copied in on_main(topology, found):
        # Outside: a store that does not answer is no reason to go on from an older one.
        path = on_main(topology, lambda step=step, copied=copied: at_hand(step, copied))
        try:
            verify_shared(path, topology)
        except SharedTransientError:  # as a store that does not answer
            raise
        except UserError as damage:  # the same on every rank
            fault = fault or damage
            say(topology, f"passed over: {damage}")
            if copies is not None and copied:
                copies.distrust(step)
            on_main(topology, lambda: forget_brought(run))
        else:
            return path
    if fault is not None:
        raise fault
    return None


def bring_back(path: Path, run: Path, copies: Copies | None) -> None:
    """Copy the checkpoint at `path`, which is none of the run's own yet, and the record to the run's directory."""
    copy_checkpoint(path, run / CHECKPOINTS)
    if copies is not None:
        copies.bring_record(run)


def forget_brought(run: Path) -> None:
    """Remove what was brought from a store and is not needed any more."""
    remove_directory(run / BROUGHT)
