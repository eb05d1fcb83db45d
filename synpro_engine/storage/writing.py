"""Files brought into a store, each whole or not at all: a store shows a file once all of it has come."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError, read_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.config.integrity import content_files
from synpro_engine.storage import faults
from synpro_engine.storage.opening import open_store
from synpro_engine.storage.places import joined
from synpro_engine.storage.stores import find_files, patiently

BEGUN = ".begun"
"""Says that what lies beside it is the rest of an interrupted copy."""


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


def begin_directory(address: str, kind: str) -> list[str]:
    """Make sure that an artifact of a kind can be copied to an address, by a mark that is put there.

    Returns the addresses of what the new one takes the place of: an earlier artifact of its kind, or the rest of an
    interrupted copy. UserError where other files lie there, or none can be put.
    """
    there, begun, manifest = find_files(address), joined(address, BEGUN), joined(address, MANIFEST)
    named = {file.address: file for file in there}
    if manifest in named:
        text = named[manifest].read(0, named[manifest].size)
        found = json.loads(text).get("kind") if text.startswith(b"{") else None
        if found != kind:
            raise UserError(f"{address}: is an artifact of kind {found}; it is not replaced by a new {kind}")
    elif named and begun not in named:
        raise UserError(f"{address}: holds files that are no finished artifact; they are not replaced")
    put_text("a copy was begun here and is not whole\n", begun)
    return list(named)


def put_directory(directory: Path, address: str) -> None:
    """Copy an artifact's files below an address, the manifest last: a copy is whole where that is there.

    UserError as `begin_directory`.
    """
    there = begin_directory(address, read_manifest(directory).kind)
    begun, manifest = joined(address, BEGUN), joined(address, MANIFEST)
    if manifest in there:
        remove_files([manifest])
    names = [str(file.relative_to(directory)) for file in content_files(directory)]
    for name in names:
        if name != MANIFEST:
            put_file(directory / name, joined(address, name))
    kept = {joined(address, name) for name in names}
    # Before the manifest says that it is whole: a file that it does not list would be taken for damage.
    remove_files(sorted(set(there) - kept - {begun}))
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
