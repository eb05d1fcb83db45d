"""Files brought into a store, each whole or not at all: a store shows a file once all of it has come."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError, json_text, read_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.config.integrity import content_files
from synpro_engine.storage import faults
from synpro_engine.storage.opening import open_store
from synpro_engine.storage.places import joined
from synpro_engine.storage.reading import RemoteFile
from synpro_engine.storage.stores import find_files, patiently

BEGUN = ".begun"
"""Says which files beside it are of a copy that is not whole."""

_MOST_BYTES = 1 << 26  # of a manifest


def put_file(path: Path, address: str) -> None:
    """Copy a file to an address, over one that is there; UserError names the address."""
    store, inside = open_store(address, writing=True)

    def ask() -> None:
        store.put_file(str(path), inside)
        store.invalidate_cache()
        # Its bytes carry a checksum on their way; that all of them came is asked of the store.
        size = store.info(inside)["size"]
        if size != path.stat().st_size:
            raise UserError(f"{address}: has {size} bytes of {path}, which has {path.stat().st_size}")

    patiently(address, ask, faults.PATIENCE_S)


def put_text(text: str, address: str) -> None:
    """Write a small text file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(text.encode())
        file.flush()
        put_file(Path(file.name), address)


def begin_directory(address: str, kind: str, names: Sequence[str] = ()) -> set[str]:
    """Make sure that an artifact of a kind can be copied to an address, by a mark that is put there.

    names: of the files that the copy will have, as far as they are known. Returns the names of what is there already,
    which the new one takes the place of: an earlier artifact of its kind, or the rest of an interrupted copy, and the
    mark of one. UserError where other files lie there, or none can be put.
    """
    named = {file.address.removeprefix(address).strip("/"): file for file in find_files(address)}
    owned = set[str]()
    if MANIFEST in named:
        manifest = _object(named[MANIFEST])
        if manifest.get("kind") != kind:
            found = manifest.get("kind", "unknown")
            raise UserError(f"{address}: is an artifact of kind {found}; it is not replaced by a new {kind}")
        owned.update(_names(manifest))
    elif named and BEGUN not in named:
        raise UserError(f"{address}: holds files that are no finished artifact; they are not replaced")
    if BEGUN in named:
        owned.update(_names(_object(named[BEGUN])))
    # A mark may be left of a copy that never came to a file, and other artifacts lie below it since.
    for name in sorted(named.keys() - owned - {MANIFEST, BEGUN}):
        raise UserError(f"{joined(address, name)}: is no part of a {kind} at {address}, and is not removed for one")
    put_text(json_text({"files": sorted(owned.union(names))}), joined(address, BEGUN))
    return set(named)


def _object(file: RemoteFile) -> dict[str, Any]:
    """A small JSON file's object; {} for anything else, which is nothing of ours."""
    try:
        data = json.loads(file.read(0, _MOST_BYTES))
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _names(listing: Mapping[str, Any]) -> set[str]:
    """Of files, as manifests and marks list them."""
    files = listing.get("files")
    return {name for name in files if isinstance(name, str)} if isinstance(files, list | dict) else set()


def put_directory(directory: Path, address: str) -> None:
    """Copy an artifact's files below an address, the manifest last: a copy is whole where that is there.

    UserError as `begin_directory`.
    """
    names = [file.relative_to(directory).as_posix() for file in content_files(directory)]
    there = begin_directory(address, read_manifest(directory).kind, names)
    begun, manifest = joined(address, BEGUN), joined(address, MANIFEST)
    if MANIFEST in there:
        remove_files([manifest])
    for name in names:
        if name != MANIFEST:
            put_file(directory / name, joined(address, name))
    # Before the manifest says that it is whole: a file that it does not list would be taken for damage.
    remove_files([joined(address, name) for name in sorted(there - {*names, MANIFEST, BEGUN})])
    put_file(directory / MANIFEST, manifest)
    remove_files([begun])


def remove_files(addresses: Sequence[str]) -> None:
    """Remove files in this order; those that are not there are gone already."""
    for address in addresses:
        store, path = open_store(address, writing=True)

        def ask(store: Any = store, path: str = path) -> None:
            # One by one: removal of many at once says nothing of those that a store refused to remove.
            with contextlib.suppress(FileNotFoundError):
                store.rm_file(path)

        patiently(address, ask, faults.PATIENCE_S)
