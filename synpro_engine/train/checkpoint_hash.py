"""Hashing a checkpoint's files on all ranks at once, since one thread would keep the others waiting.

The hash is that of any artifact (`hash_directory`): over the names and the bytes of all files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from synpro_engine.config.artifact import MANIFEST
from synpro_engine.dist import Topology, on_every_rank, on_main, progress

_THREADS = 4
_BLOCK_BYTES = 1 << 22
_SHOWN_BYTES = 1 << 32  # checking more than this takes seconds, and shows that it goes on


def hashes_of_written(directory: Path, files: Sequence[Path], topology: Topology) -> dict[str, str]:
    """SHA-256 by path below `directory`, of the `files` that each rank names (each its own). Collective."""
    names = [str(file.relative_to(directory)) for file in files]
    return _merged(on_every_rank(topology, lambda: _hash(directory, names, None)))


def hashes_shared_out(directory: Path, topology: Topology) -> dict[str, str]:
    """SHA-256 by path below `directory`, of all files but the manifest; every rank reads a share. Collective."""
    sizes = on_main(topology, lambda: _sizes(directory))
    shares: list[list[str]] = [[] for _ in range(topology.world_size)]
    loads = [0] * topology.world_size
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        shares[rank].append(name)
        loads[rank] += sizes[name]
    share = shares[topology.rank]
    if sum(sizes.values()) < _SHOWN_BYTES:
        return _merged(on_every_rank(topology, lambda: _hash(directory, share, None)))
    with progress(loads[topology.rank], f"checking {directory.name}", "B", topology) as bar:
        return _merged(on_every_rank(topology, lambda: _hash(directory, share, bar.update)))


def _sizes(directory: Path) -> dict[str, int]:
    files = (path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
    return {str(path.relative_to(directory)): path.stat().st_size for path in files}


def _hash(directory: Path, names: Sequence[str], read: Callable[[int], object] | None) -> dict[str, str]:
    workers = min(_THREADS, os.cpu_count() or 1, len(names)) or 1
    with ThreadPoolExecutor(workers) as pool:  # hashlib lets other threads run while it works
        return dict(zip(names, pool.map(lambda name: _sha256(directory / name, read), names), strict=True))


def _sha256(path: Path, read: Callable[[int], object] | None) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            if read is not None:
                read(len(block))
    return digest.hexdigest()


def _merged(parts: Sequence[dict[str, str]]) -> dict[str, str]:
    return {name: digest for part in parts for name, digest in part.items()}
