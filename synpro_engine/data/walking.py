"""All files of a place: a path, an address, or a pattern of either; in reading order, hidden ones aside."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from synpro_engine.config import UserError
from synpro_engine.storage import RemoteFile, find_files, is_remote, place
from synpro_engine.storage.places import expanded, folders_of, joined, pattern_of, split_pattern
from synpro_engine.storage.stores import find_file

CorpusFile: TypeAlias = Path | RemoteFile
_NAMED = 5  # files that are left out stand in a message by name up to so many
_ASKED = 16  # files of a store that are asked for together


@dataclass(frozen=True, kw_only=True)
class Walked:
    """The files of a place, whatever their kind, in reading order, and what of it is passed over."""

    root: str
    """What their paths begin below: a directory, an address, or of a single file where it lies."""
    files: tuple[CorpusFile, ...]
    left_out: tuple[str, ...] = ()
    single: bool = False
    pattern: str = ""
    """Which paths below `root` they were chosen by; "" for all."""

    def path_of(self, file: CorpusFile) -> str:
        """The path of one of the files below `root`, as text that any encoding can hold."""
        if isinstance(file, Path):
            return _below(file, Path(self.root))
        return file.address.removeprefix(self.root).lstrip("/")


def not_read(name: str, left_out: Sequence[str]) -> str:
    """What of a place is left out, in a line for the user; "" for nothing."""
    more = len(left_out) - _NAMED
    told = f"{name}: not read: {', '.join(left_out[:_NAMED])}" + (f" and {more} more" if more > 0 else "")
    return told if left_out else ""


def walk_place(name: str) -> Walked | None:
    """All files of a path, an address or a pattern of either, hidden ones aside; None where nothing is there.

    UserError for what cannot be read or is no place, and for a file that a list in braces names and that is not there.
    """
    try:
        name = place(name)
        root, wild = split_pattern(name)
        if is_remote(name):
            return _in_store(name) if not wild else _matching_in_store(root, wild)
        # A name that is there goes before a pattern: files may have any name. Lists in braces may be longer than one.
        return _matching(Path(root), wild) if wild and not os.path.exists(name) else _on_disk(name)
    except ValueError as error:
        raise UserError(str(error)) from None


def names_each(wild: str) -> bool:
    """Whether a pattern is a list of files, in braces alone."""
    return bool(wild) and "*" not in wild


def _on_disk(name: str) -> Walked | None:
    path = Path(name)
    if name and os.path.isdir(name):  # an empty name would be the present directory
        files, left_out = walk_files(path)
        return Walked(root=name, files=tuple(files), left_out=tuple(left_out))
    if not name or not os.path.exists(name):
        return None
    if not path.is_file():
        raise UserError(f"{name}: is neither a file nor a directory")
    return Walked(root=str(path.parent), files=(path,), single=True)


def _matching(root: Path, wild: str) -> Walked | None:
    if names_each(wild):
        return _named(str(root), wild, lambda name: Path(name) if os.path.isfile(name) else None)
    pattern, folders = pattern_of(wild), folders_of(wild)
    files, left_out = walk_files(root, folders.fullmatch) if os.path.isdir(root) else ([], [])
    matching = tuple(file for file in files if pattern.fullmatch(_below(file, root)))
    passed = tuple(path for path in left_out if pattern.fullmatch(path))
    return Walked(root=str(root), files=matching, left_out=passed, pattern=wild) if matching or passed else None


def _named(root: str, wild: str, find: Callable[[str], CorpusFile | None]) -> Walked | None:
    """Each file by its name, so that one in a folder that may not be listed can be read; None where there is none."""
    paths = list(dict.fromkeys(expanded(wild)))
    with ThreadPoolExecutor(_ASKED, "find") as pool:
        found = dict(zip(paths, pool.map(find, [joined(root, path) for path in paths]), strict=True))
    there = {path: file for path, file in found.items() if file is not None}
    if there and (missing := [path for path in paths if path not in there]):
        raise UserError(f"{joined(root, missing[0])}: no such file")
    return _listed(root, there, wild)


def _in_store(address: str) -> Walked | None:
    single = find_file(address)
    if single is not None:
        return Walked(root=address.rpartition("/")[0], files=(single,), single=True)
    return _listed(address, _below_address(address, find_files(address)))


def _matching_in_store(root: str, wild: str) -> Walked | None:
    if names_each(wild):
        return _named(root, wild, find_file)
    pattern = pattern_of(wild)
    files = _below_address(root, find_files(root, nested="/" in wild or "**" in wild))
    return _listed(root, {path: file for path, file in files.items() if pattern.fullmatch(path)}, wild)


def _below_address(address: str, files: Sequence[RemoteFile]) -> dict[str, CorpusFile]:
    return {file.address[len(address) + 1 :]: file for file in files}


def _listed(root: str, files: Mapping[str, CorpusFile], pattern: str = "") -> Walked | None:
    """Files by path below a root in the order in which they would be read from a disk, hidden ones apart."""
    left_out: dict[str, None] = {}
    seen: list[CorpusFile] = []
    for parts, file in sorted(((path.split("/"), file) for path, file in files.items()), key=lambda pair: pair[0]):
        hidden = next((at for at, part in enumerate(parts) if part.startswith((".", "_"))), None)
        if hidden is None:
            seen.append(file)
        else:
            left_out["/".join(parts[: hidden + 1]) + ("/" if hidden + 1 < len(parts) else "")] = None
    return Walked(root=root, files=tuple(seen), left_out=tuple(left_out), pattern=pattern) if files else None


def walk_files(root: Path, enters: Callable[[str], object] = bool) -> tuple[list[Path], list[str]]:
    """Return (files below `root`, paths below it of what is hidden, entered before, or no file).

    Depth first, each folder by name. Links are followed; a folder is entered once, so links that lead back end there.
    enters: whether a folder, by its path below `root`, is looked into. UserError for one that cannot be read.
    """
    files: list[Path] = []
    left_out: list[str] = []
    entered: set[tuple[int, int]] = set()
    todo = [root]
    while todo:
        path = todo.pop()
        # The root may have any name, since the user gave it. Below it these are caches,
        # checkpoints of tools, `_SUCCESS` marks.
        hidden = path != root and path.name.startswith((".", "_"))
        if path.is_dir():
            if path != root and not enters(_below(path, root)):
                continue
            status = path.stat()
            if hidden or (status.st_dev, status.st_ino) in entered:
                left_out.append(_below(path, root) + "/")
                continue
            entered.add((status.st_dev, status.st_ino))
            try:
                names = os.listdir(path)
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from None
            # Names as `str`, sorted by code points and not by the locale, so that every machine reads in one order.
            todo += [path / name for name in sorted(names, reverse=True)]
        elif hidden or (path.exists() and not path.is_file()):  # pipes and devices would block; a dead link is told of
            left_out.append(_below(path, root))
        else:
            files.append(path)
    return files, left_out


def _below(path: Path, root: Path) -> str:
    """Names that are not UTF-8 are spelled with escapes, so that they can stand in ids, JSON and messages."""
    return os.fsencode(path.relative_to(root)).decode("utf-8", "backslashreplace")
