"""Hashing files on all ranks at once, since one thread would keep the others waiting."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from synpro_engine.config import Manifest, new_artifact, read_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.config.errors import Stopped, naming
from synpro_engine.config.integrity import Stamp, confirm, remember, stale_files, unhashed_files
from synpro_engine.dist.collectives import on_every_rank, on_main
from synpro_engine.dist.progress import progress
from synpro_engine.dist.topology import Topology

# A rank: several share a machine, its disk and its cores.
_THREADS = 4
_BLOCK_BYTES = 1 << 22
_SHOWN_BYTES = 1 << 32  # hashing more than this takes seconds, and shows that it goes on


def verify_shared(path: Path, topology: Topology) -> Manifest:
    """`verify_artifact` with the hashing shared out over the ranks. Collective.

    Raises UserError, which names the file, on every rank, and Stopped when the job is asked to stop on the way.
    """

    def look() -> tuple[Manifest, dict[str, int]]:
        manifest = read_manifest(path)
        # Into rank 0's own variable, for only names and sizes need to travel: stamps mean nothing on another machine.
        stale.update(stale_files(path, manifest.files, MANIFEST))
        return manifest, {name: stamp[0] for name, stamp in stale.items()}

    stale: dict[str, Stamp] = {}  # rank 0's
    manifest, sizes = on_main(topology, look)

    def go_on(_: int) -> None:
        if topology.watch.wish.signal is not None:
            # Reading may be broken off, for nothing is lost. Files that were just made are hashed to the end, below.
            raise Stopped(f"{path}: stopped while it was checked")

    hashes = _hashes_shared_out(path, sizes, topology, f"checking {path.name}", go_on)
    # Rank 0 compares and remembers for all: others would race for the same record of hashes.
    on_main(topology, lambda: confirm(path, manifest.files, stale, hashes))
    return manifest


def hash_new_files(directory: Path, topology: Topology) -> None:
    """Hash the files below `directory` whose hashes nobody knows, and remember them for its manifest. Collective."""

    def look() -> dict[str, int]:
        new.update(unhashed_files(directory, MANIFEST))
        return {name: stamp[0] for name, stamp in new.items()}

    new: dict[str, Stamp] = {}  # rank 0's
    sizes = on_main(topology, look)
    hashes = _hashes_shared_out(directory, sizes, topology, f"hashing {directory.name}", lambda _: None)
    on_main(topology, lambda: remember(directory, new, hashes))


@contextmanager
def shared_artifact(
    topology: Topology,
    path: Path,
    kind: str,
    config: Mapping[str, Any],
    parents: Mapping[str, Path] | None = None,
    seed: int | None = None,
) -> Iterator[Path]:
    """`new_artifact` that all ranks fill together: rank 0 makes and publishes it, all hash it. Collective."""
    with ExitStack() as held:
        # Held on rank 0 alone, which renames at the end; the others know the path and write below it.
        directory = on_main(topology, lambda: held.enter_context(new_artifact(path, kind, config, parents, seed)))
        yield directory
        # Within the block, so that `new_artifact` finds every hash remembered and reads no file again on one thread.
        hash_new_files(directory, topology)
        on_main(topology, held.close)


def hashes_of_written(directory: Path, files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 by path below `directory`, of `files` that this rank wrote. No communication."""
    return _hash(directory, [str(file.relative_to(directory)) for file in files], lambda _: None)


def _hashes_shared_out(
    directory: Path, sizes: Mapping[str, int], topology: Topology, label: str, read: Callable[[int], object]
) -> dict[str, str]:
    """Of the files in `sizes` (bytes), the same on every rank; each reads a share, and tells `read` how far it is."""
    shares: list[list[str]] = [[] for _ in range(topology.world_size)]
    loads = [0] * topology.world_size
    # The largest first, each to the least loaded: shares then differ by one small file, not by one large one. By name
    # between equals, for all ranks must deal alike.
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        shares[rank].append(name)
        loads[rank] += sizes[name]
    # A file system may show another node new files a little later: those are left to rank 0, which knows of them.
    share = [name for name in shares[topology.rank] if topology.is_main or (directory / name).exists()]
    hidden = sum(loads) < _SHOWN_BYTES
    with nullcontext() if hidden else progress(loads[topology.rank], label, "B", topology) as bar:

        def advance(size: int) -> None:
            read(size)
            if bar is not None:
                bar.update(size)

        hashes = _merged(on_every_rank(topology, lambda: _hash(directory, share, advance)))
    # From the merged hashes, which are the same everywhere: all ranks take the collective below, or none does.
    left = [name for name in sizes if name not in hashes]
    return hashes | on_main(topology, lambda: _hash(directory, left, read)) if left else hashes


def _hash(directory: Path, names: Sequence[str], read: Callable[[int], object]) -> dict[str, str]:
    workers = min(_THREADS, os.cpu_count() or 1, len(names)) or 1
    with ThreadPoolExecutor(workers) as pool:  # hashlib lets other threads run while it works
        return dict(zip(names, pool.map(lambda name: _sha256(directory / name, read), names), strict=True))


def _sha256(path: Path, read: Callable[[int], object]) -> str:
    digest = hashlib.sha256()
    # Unbuffered, since blocks of 4 MiB gain nothing from a second copy through Python's buffer.
    with naming(path), path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            read(len(block))
    return digest.hexdigest()


def _merged(parts: Sequence[dict[str, str]]) -> dict[str, str]:
    return {name: digest for part in parts for name, digest in part.items()}
