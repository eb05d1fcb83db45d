"""Models and checkpoints brought from a store to this machine's disk, where they are mapped into memory.

They stay in the cache, below `SYNPRO_CACHE` (else `synpro_engine` in `XDG_CACHE_HOME` or `~/.cache`), and are not
brought twice.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from synpro_engine.config import UserError, json_text
from synpro_engine.config.lock import writing
from synpro_engine.storage.places import is_remote, place_name
from synpro_engine.storage.reading import BLOCK, RemoteFile
from synpro_engine.storage.stores import find_file, find_files
from synpro_engine.storage.writing import BEGUN

_TOGETHER = 4  # files


def cache_folder() -> Path:
    """Where what is brought from stores is kept; UserError where nothing says where."""
    if own := os.environ.get("SYNPRO_CACHE"):
        return Path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base, "synpro_engine")
    try:
        return Path.home() / ".cache" / "synpro_engine"
    except RuntimeError:
        raise UserError(
            "SYNPRO_CACHE: is not set, and this user has no home; it names the folder of the cache"
        ) from None


def listing_key(files: Mapping[str, RemoteFile]) -> str:
    """Hex digest of what was listed, by name: other names, files, sizes or versions have another one."""
    listed = sorted((name, file.address, file.size, file.version) for name, file in files.items())
    return hashlib.sha256(json_text(listed).encode()).hexdigest()


def at_hand(place: str) -> Path:
    """The file or directory at a place as a path of this machine: itself, or its copy in the cache.

    UserError for an address where nothing is, and for names in it that lead out of it.
    """
    if not is_remote(place):
        return Path(place)
    single = find_file(place)
    # Not the mark of a copy that was begun, which a kill behind its last file leaves.
    files = [file for file in find_files(place) if file.name != BEGUN] if single is None else [single]
    if not files:
        raise UserError(f"{place}: nothing is there")
    return _brought(files, place)


def file_at_hand(file: Path | RemoteFile) -> Path:
    """A file as a path of this machine; UserError where another one than was listed lies in the store by now."""
    return file if isinstance(file, Path) else _brought([file], file.address)


def _brought(files: Sequence[RemoteFile], place: str) -> Path:
    key = listing_key({file.address.removeprefix(place): file for file in files})[:32]
    home, partial = cache_folder() / "copies" / key, cache_folder() / "partial" / key
    copy = home / place_name(place)
    if copy.exists():
        return copy
    partial.mkdir(parents=True, exist_ok=True)
    with writing(partial / "lock", wait=True):  # a file, for NFS locks no directory
        if not copy.exists():  # another process may have been quicker
            fetch(files, place, partial / "content")
            home.mkdir(parents=True, exist_ok=True)
            (partial / "content").rename(copy)
    return copy


def fetch(files: Sequence[RemoteFile], root: str, into: Path) -> None:
    """Copy files to `into`, by their names below `root`; one that is `root` itself becomes `into`.

    What an interrupted call left there of the same files is gone on with.
    """
    inner = {file: file.address.removeprefix(root).strip("/") for file in files}
    for name in inner.values():
        if any(part in ("", ".", "..") for part in name.split("/")) and name:
            raise UserError(f"{root}: holds a file whose name {name!a} leads elsewhere")
    with ThreadPoolExecutor(_TOGETHER, "fetch") as pool:
        tasks = [pool.submit(_fetch, file, into / name if name else into) for file, name in inner.items()]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            for task in tasks:
                task.cancel()
            raise


def _fetch(file: RemoteFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.stat().st_size if path.exists() else 0
    if begun > file.size:
        path.unlink()
        begun = 0
    with path.open("ab") as copy, file.open_ranges() as source:
        source.seek(begun)
        while block := source.read(BLOCK):
            copy.write(block)
    if path.stat().st_size != file.size:
        raise UserError(f"{path}: has {path.stat().st_size} bytes of {file}, which has {file.size}")
