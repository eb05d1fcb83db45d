"""What a run reads from outside its directory, told apart by content: so that a changed input is noticed."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from synpro_engine.config import UserError, versions
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.data.embedded import EMBEDDED_PREFIX
from synpro_engine.data.walking import Walked, walk_place
from synpro_engine.storage import RemoteFile, is_remote, remembered
from synpro_engine.storage.stores import find_file

_EDGE = 2**20
_TOGETHER = 16  # files of a store whose edges are read together


def fingerprint(source: str | Sequence[str] | None) -> str:
    """Hex digest of names, sizes, and first and last MiB of files, hidden ones aside; "" for None.

    source: a file, a directory, a pattern, the prefix of a `.bin` and an `.idx`, or several of these. Cheap enough to
    take at every start, and the same for a copy on another machine or in a store, whose listing says whether it has to
    be taken anew. An edit in the middle of a large file that keeps its size is not seen. What is not a path
    (`embedded:...`, `random`) stands for itself with the version of the package; a missing path too, for whoever opens
    it says so.
    """
    if source is None:
        return ""
    if not isinstance(source, str):
        return hashlib.sha256("".join(map(fingerprint, source)).encode()).hexdigest()
    walked = _walked(source)
    if walked is None:
        return hashlib.sha256(f"{source} {versions().get('synpro_engine')}".encode()).hexdigest()
    # By the names that are digested: of one listing they are others below another root.
    remote = {os.fsdecode(_name(walked, file)): file for file in walked.files if isinstance(file, RemoteFile)}
    return remembered(remote, "edges", lambda: _digest(walked)) if remote else _digest(walked)


def _walked(source: str) -> Walked | None:
    """By the same walk that reads a corpus, so that what is not read does not count."""
    if source.startswith(EMBEDDED_PREFIX):
        return None
    walked = walk_place(source)
    if walked is not None:
        return walked
    if is_remote(source):
        found = [find_file(f"{source}{ending}") for ending in (".bin", ".idx")]
        files: tuple[Path | RemoteFile, ...] = tuple(file for file in found if file is not None)
    else:
        files = tuple(path for path in _pair(source) if path.exists())
    root = source.rpartition("/")[0] if is_remote(source) else str(Path(source).parent)
    return Walked(root=root, files=files) if files else None


def _digest(walked: Walked) -> str:
    digest = hashlib.sha256()
    # A link that leads nowhere is no file: whoever opens it says so.
    files = [file for file in walked.files if isinstance(file, RemoteFile) or file.exists()]
    with ThreadPoolExecutor(_TOGETHER, "edges") as pool:
        for first in range(0, len(files), _TOGETHER):  # so many are held, and no more
            together = files[first : first + _TOGETHER]
            for file, edges in zip(together, pool.map(_edges, together), strict=True):
                # Names below the source, for it may be moved; sizes, for the middle of a large file is not read.
                digest.update(_name(walked, file) + f"\0{file.stat().st_size}\0".encode())
                for edge in edges:
                    digest.update(edge)
    return digest.hexdigest()


def _name(walked: Walked, file: Path | RemoteFile) -> bytes:
    if walked.single:
        return b"."
    return os.fsencode(file.relative_to(walked.root)) if isinstance(file, Path) else walked.path_of(file).encode()


def _edges(file: Path | RemoteFile) -> tuple[bytes, bytes]:
    size = file.stat().st_size
    with file.open("rb") if isinstance(file, Path) else file.open_ranges() as stream:
        first = stream.read(_EDGE)
        stream.seek(max(_EDGE, size - _EDGE))
        return first, stream.read(_EDGE)


def is_missing(source: str | Sequence[str] | None) -> bool:
    """Whether nothing lies at the places that `source` gives; UserError for a store that does not say."""
    if source is None:
        return False
    if not isinstance(source, str):
        return all(map(is_missing, source))
    return _walked(source) is None


def is_put_away(source: str | Sequence[str] | None) -> bool:
    """The same of what may lie somewhere: what a wheel brings, and a generator that is random, do not.

    What lies in a store that does not say counts as put away, which a line tells: machines that train may see no store.
    """
    if source == "random" or str(source).startswith(EMBEDDED_PREFIX):
        return False
    try:
        return is_missing(source)
    except UserError as fault:
        tqdm.write(f"{fault}; what was read of it before counts", file=sys.stderr)
        return True


def task_keys(recipe: Recipe) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys that name files of tasks: of references, and of held-out tasks."""
    references = (f"references.{name}.source" for name, one in recipe.references.items() if one.source is not None)
    return tuple(references), tuple(f"held_out.{name}.source" for name in recipe.held_out)


def asked_keys(recipe: Recipe) -> tuple[str, ...]:
    """The keys that name files of questions that are asked while models train."""
    return tuple(f"held_out.{name}.source" for name in recipe.asked)


def _pair(prefix: str) -> list[Path]:
    """Megatron's two files of token ids."""
    return [Path(f"{prefix}.bin"), Path(f"{prefix}.idx")]
