"""What a job reads and writes whole, artifacts and models, at places of either kind: for all ranks together."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from synpro_engine.config import UserError, check_replaceable, outside_artifacts, partial_path, publish, read_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.dist import Topology, on_every_rank, on_main
from synpro_engine.storage.fetching import at_hand, cache_folder
from synpro_engine.storage.places import is_remote, joined, place_name
from synpro_engine.storage.writing import BEGUN, begin_directory, put_directory, remove_files


def all_at_hand(places: Sequence[str], topology: Topology) -> list[Path]:
    """`at_hand` of each, made by rank 0 and seen by all. Collective; UserError where a rank does not see the cache."""
    paths = on_main(topology, lambda: [at_hand(place) for place in places], label="fetching")

    def look() -> None:
        for place, path in zip(places, paths, strict=True):
            if is_remote(place) and not path.exists():
                raise UserError(
                    f"{path}: is not seen by rank {topology.rank}; SYNPRO_CACHE names a folder that all share"
                )

    on_every_rank(topology, look)
    return paths


@contextmanager
def writing_to(place: str, kind: str, topology: Topology) -> Iterator[Path]:
    """A path at which the block makes an artifact of this kind, to be found at `place` afterwards. Collective.

    For an address it is a temporary one in the cache, copied once it is whole; UserError before anything is made where
    the address holds something else, or takes no file.
    """
    if not is_remote(place):
        yield Path(place)
        return
    with ExitStack() as held, ExitStack() as failing:

        def begin() -> Path:
            if BEGUN not in begin_directory(place, kind):
                # Else the mark would lie there for good, below which other artifacts may be put.
                failing.callback(_take_back, joined(place, BEGUN))
            cache_folder().mkdir(parents=True, exist_ok=True)
            folder = held.enter_context(tempfile.TemporaryDirectory(prefix="export-", dir=cache_folder()))
            return Path(folder, place_name(place))

        path = on_main(topology, begin)
        yield path
        failing.pop_all()
        on_main(topology, lambda: put_directory(path, place), label="copying")


def _take_back(mark: str) -> None:
    # What ended the block is the fault to tell, and a mark that names no files does no harm.
    with suppress(UserError):
        remove_files([mark])


def copy_artifact(artifact: Path, path: Path) -> None:
    """Copy a finished artifact to `path` on this machine, where it appears whole; one of its kind is replaced.

    UserError for a `path` that holds something else or lies inside an artifact.
    """
    manifest = read_manifest(artifact)
    check_replaceable(path, manifest.kind)
    outside_artifacts(path.resolve().parent)
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted copy left
    for name in (*manifest.files, MANIFEST):
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact / name, partial / name)
    publish(partial, path)
