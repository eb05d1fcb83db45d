"""Which files a source of documents stands for, in the order in which they are read, and what of it is left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from synpro_engine.config import UserError
from synpro_engine.data.compressed import COMPRESSED
from synpro_engine.data.embedded import EMBEDDED_NAMES, EMBEDDED_PREFIX, embedded_files
from synpro_engine.data.saved_datasets import DESCRIPTIONS, arrow_files_apart, check_shards
from synpro_engine.storage import RemoteFile, find_files, is_remote, place
from synpro_engine.storage.places import expanded, joined, pattern_of, split_pattern
from synpro_engine.storage.stores import find_file

CorpusFile: TypeAlias = Path | RemoteFile
_LINES = (".jsonl", ".ndjson", ".json")
_TABLES = (".parquet", ".arrow")
KNOWN = (
    ".jsonl, .ndjson or .json (one JSON object a line; plain or .zst, .zstd, .gz, .bz2, .xz), .parquet, .arrow (as"
    " Hugging Face's datasets has it)"
)
# What tools put beside the data that they describe.
_DESCRIPTIONS = ("manifest.json", "dataset_infos.json", *DESCRIPTIONS)
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


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of a source in reading order: by path below its root, name by name, in the order of code points."""

    name: str
    """As the user gave it."""
    walked: Walked
    files: tuple[CorpusFile, ...]
    left_out: tuple[str, ...] = ()
    """Paths below the root that are not read (a folder ends in `/`): hidden ones, and what is no corpus file."""

    def path_of(self, file: CorpusFile) -> str:
        """The path of one of its files below the root, as text that any encoding can hold."""
        return self.walked.path_of(file)

    @property
    def is_remote(self) -> bool:
        """Whether it lies in an object store, where looking through it once more costs as much as reading it."""
        return is_remote(self.walked.root)

    @property
    def remark(self) -> str:
        """What is left out, in a line for the user; "" for nothing."""
        if not self.left_out:
            return ""
        more = len(self.left_out) - _NAMED
        return f"{self.name}: not read: {', '.join(self.left_out[:_NAMED])}" + (f" and {more} more" if more > 0 else "")


def find_source(name: str | Path) -> Source:
    """The files of `name`: one of `EMBEDDED_NAMES`, a corpus file, a directory, searched through all its folders, or a
    pattern (`*`, `**`, `{000..099}`) of files; on this machine or in an object store.

    A name that begins with a dot or an underscore is hidden. A folder that links lead to twice is read once. Raises
    UserError for a source that is not there, a file of an unknown kind, a directory without a corpus file, and a
    directory of a saved dataset whose files are not all there, or of which one split is to be named.
    """
    name = str(name)
    if name.startswith(EMBEDDED_PREFIX):
        files = embedded_files(name)
        return Source(name=name, walked=Walked(root=str(files[0].parent), files=files), files=files)
    walked = walk_place(name)
    if walked is None:
        raise UserError(f"{name or '(no name)'}: no such file or directory (built in: {EMBEDDED_NAMES})")
    if walked.single:
        [file] = walked.files
        if not _is_corpus_file(file.name):
            raise UserError(f"{name}: unknown kind of corpus file; known: {KNOWN}")
        return Source(name=name, walked=walked, files=walked.files)
    named = {walked.path_of(file): file for file in walked.files}
    if walked.pattern:
        check_shards(walked.root, named, pattern_of(walked.pattern).fullmatch)
    apart = arrow_files_apart(walked.root, named)
    read = {path: file for path, file in named.items() if _is_corpus_file(file.name) and path not in apart}
    left_out = tuple(sorted([*walked.left_out, *(named.keys() - read.keys())]))
    source = Source(name=name, walked=walked, files=tuple(read.values()), left_out=left_out)
    if not source.files:
        where = "matches" if split_pattern(name)[1] else "is in this directory"
        raise UserError(f"{source.remark or name}: no corpus file {where}; known: {KNOWN}")
    return source


def walk_place(name: str) -> Walked | None:
    """All files of a path, an address or a pattern of either, hidden ones aside; None where nothing is there.

    UserError for what cannot be read or is no place, and for a file that a list in braces names and that is not there.
    """
    try:
        name = place(name)
        root, wild = split_pattern(name)
        if is_remote(name):
            return _in_store(name) if not wild else _matching_in_store(root, wild)
        # A name that is there goes before a pattern: files may have any name.
        return _matching(Path(root), wild) if wild and not Path(name).exists() else _on_disk(name)
    except ValueError as error:
        raise UserError(str(error)) from None


def _on_disk(name: str) -> Walked | None:
    path = Path(name)
    if name and path.is_dir():  # an empty name would be the present directory
        files, left_out = walk_files(path)
        return Walked(root=name, files=tuple(files), left_out=tuple(left_out))
    if not name or not path.exists():
        return None
    if not path.is_file():
        raise UserError(f"{name}: is neither a file nor a directory")
    return Walked(root=str(path.parent), files=(path,), single=True)


def _matching(root: Path, wild: str) -> Walked | None:
    pattern = pattern_of(wild)
    files, left_out = walk_files(root) if root.is_dir() else ([], [])
    matching = tuple(file for file in files if pattern.fullmatch(_below(file, root)))
    passed = tuple(path for path in left_out if pattern.fullmatch(path))
    return Walked(root=str(root), files=matching, left_out=passed, pattern=wild) if matching or passed else None


def _in_store(address: str) -> Walked | None:
    single = find_file(address)
    if single is not None:
        return Walked(root=address.rpartition("/")[0], files=(single,), single=True)
    return _listed(address, find_files(address))


def _matching_in_store(root: str, wild: str) -> Walked | None:
    if "*" not in wild:
        # Each by its name, so that a folder that may not be listed can be read.
        addresses = [joined(root, path) for path in expanded(wild)]
        with ThreadPoolExecutor(_ASKED, "find") as pool:
            found = list(pool.map(find_file, addresses))
        for address, file in zip(addresses, found, strict=True):
            if file is None:
                raise UserError(f"{address}: no such file")
        return _listed(root, [file for file in found if file is not None])
    pattern = pattern_of(wild)
    files = find_files(root, nested="/" in wild or "**" in wild)
    return _listed(root, [file for file in files if pattern.fullmatch(file.address[len(root) + 1 :])], wild)


def _listed(root: str, files: Sequence[RemoteFile], pattern: str = "") -> Walked | None:
    """Files of a store in the order in which they would be read from a disk, hidden ones apart."""
    by_path = [(tuple(file.address[len(root) + 1 :].split("/")), file) for file in files]
    left_out: dict[str, None] = {}
    seen: list[CorpusFile] = []
    for parts, file in sorted(by_path, key=lambda pair: pair[0]):
        hidden = next((at for at, part in enumerate(parts) if part.startswith((".", "_"))), None)
        if hidden is None:
            seen.append(file)
        else:
            left_out["/".join(parts[: hidden + 1]) + ("/" if hidden + 1 < len(parts) else "")] = None
    return Walked(root=root, files=tuple(seen), left_out=tuple(left_out), pattern=pattern) if files else None


def _is_corpus_file(name: str) -> bool:
    name = name.lower()
    stem, packed = next(((name.removesuffix(s), True) for s in COMPRESSED if name.endswith(s)), (name, False))
    # They end in .json and hold one object over many lines, which would be taken for a broken corpus file.
    if name in _DESCRIPTIONS:
        return False
    # A packed file without another suffix (`RC_2023-01.zst`) can hold nothing but lines either.
    return stem.endswith(_LINES) or (not packed and name.endswith(_TABLES)) or (packed and "." not in stem)


def walk_files(root: Path) -> tuple[list[Path], list[str]]:
    """Return (files below `root`, paths below it of what is hidden, entered before, or no file).

    Depth first, each folder by name. Links are followed; a folder is entered once, so links that lead back end there.
    Raises UserError for a folder that cannot be read.
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
