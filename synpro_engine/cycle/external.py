"""What a run reads from outside its directory, told apart by content: so that a changed input is noticed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from synpro_engine.config import versions
from synpro_engine.data import walk_files

_EDGE = 2**20


def fingerprint(source: str | None) -> str:
    """Hex digest of a file's or directory's names, sizes, and first and last MiB, hidden files aside; "" for None.

    Cheap enough to take at every start, and the same for a copy on another machine. An edit in the middle of a
    large file that keeps its size is not seen. What is not a path (`embedded:...`, `random`) stands for itself
    with the version of the package; a missing path too, for whoever opens it says so.
    """
    if source is None:
        return ""
    path, digest = Path(source), hashlib.sha256()
    if not path.exists():
        return hashlib.sha256(f"{source} {versions().get('synpro_engine')}".encode()).hexdigest()
    files = [path] if path.is_file() else walk_files(path)[0]
    for file in files:
        if not file.exists():  # a link that leads nowhere: whoever opens it says so
            continue
        digest.update(os.fsencode(file.relative_to(path)) + f"\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_EDGE))
            stream.seek(max(_EDGE, file.stat().st_size - _EDGE))
            digest.update(stream.read(_EDGE))
    return digest.hexdigest()


def fingerprint_shards(paths: Sequence[str]) -> str:
    """The same for token files: of a prefix, its `.bin` and `.idx` are looked at."""
    digest = hashlib.sha256()
    for path in paths:
        for file in (path,) if Path(path).exists() else (f"{path}.bin", f"{path}.idx"):
            digest.update(fingerprint(file).encode())
    return digest.hexdigest()
