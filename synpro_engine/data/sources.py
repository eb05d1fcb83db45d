"""Which files a source of documents stands for, in the order in which they are read, and what of it is left out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from synpro_engine.config import UserError
from synpro_engine.data.compressed import COMPRESSED
from synpro_engine.data.embedded import EMBEDDED_NAMES, EMBEDDED_PREFIX, embedded_files

_LINES = (".jsonl", ".ndjson", ".json")
KNOWN = ".jsonl, .ndjson or .json (one JSON object a line; plain or .zst, .zstd, .gz, .bz2, .xz), .parquet"
# What tools put beside the data that they describe.
_DESCRIPTIONS = ("manifest.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_NAMED = 5  # files that are left out stand in a message by name up to so many


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of a source in reading order: by path below `root`, name by name, in the order of code points."""

    name: str
    """As the user gave it."""
    root: Path
    files: tuple[Path, ...]
    left_out: tuple[str, ...] = ()
    """Paths below `root` that are not read (a folder ends in `/`): hidden ones, and those that are no corpus files."""

    def path_of(self, file: Path) -> str:
        """The path of one of its files below `root`, as text that any encoding can hold."""
        return _below(file, self.root)

    @property
    def remark(self) -> str:
        """What is left out, in a line for the user; "" for nothing."""
        if not self.left_out:
            return ""
        more = len(self.left_out) - _NAMED
        return f"{self.name}: not read: {', '.join(self.left_out[:_NAMED])}" + (f" and {more} more" if more > 0 else "")


def find_source(name: str | Path) -> Source:
    """The files of `name`: one of `EMBEDDED_NAMES`, a corpus file, or a directory, searched through all its folders.

    A name that begins with a dot or an underscore is hidden. A folder that links lead to twice is read once. Raises
    UserError for a source that is not there, a file of an unknown kind, and a directory without a corpus file.
    """
    name = str(name)
    if name.startswith(EMBEDDED_PREFIX):
        files = embedded_files(name)
        return Source(name=name, root=files[0].parent, files=files)
    path = Path(name)
    if name and path.is_dir():  # an empty name would be the present directory
        return _directory(name, path)
    if not name or not path.exists():
        raise UserError(f"{name or '(no name)'}: no such file or directory (built in: {EMBEDDED_NAMES})")
    if not path.is_file():
        raise UserError(f"{name}: is neither a file nor a directory")
    if not _is_corpus_file(path.name):
        raise UserError(f"{name}: unknown kind of corpus file; known: {KNOWN}")
    return Source(name=name, root=path.parent, files=(path,))


def _directory(name: str, root: Path) -> Source:
    files, left_out = walk_files(root)
    others = [_below(file, root) for file in files if not _is_corpus_file(file.name)]
    source = Source(
        name=name,
        root=root,
        files=tuple(file for file in files if _is_corpus_file(file.name)),
        left_out=tuple(sorted([*left_out, *others])),
    )
    if not source.files:
        raise UserError(f"{source.remark or name}: no corpus file is in this directory; known: {KNOWN}")
    return source


def _is_corpus_file(name: str) -> bool:
    name = name.lower()
    stem, packed = next(((name.removesuffix(s), True) for s in COMPRESSED if name.endswith(s)), (name, False))
    # They end in .json and hold one object over many lines, which would be taken for a broken corpus file.
    if name in _DESCRIPTIONS:
        return False
    # A packed file without another suffix (`RC_2023-01.zst`) can hold nothing but lines either.
    return stem.endswith(_LINES) or (not packed and name.endswith(".parquet")) or (packed and "." not in stem)


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
