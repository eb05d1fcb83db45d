"""Digests of what lies in stores, remembered by its listing, so that nothing is read again while the store shows it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping

from synpro_engine.storage.fetching import cache_folder, listing_key
from synpro_engine.storage.reading import RemoteFile


def remembered(files: Mapping[str, RemoteFile], purpose: str, make: Callable[[], str]) -> str:
    """The digest that `make` made of these files, under these names, for a purpose the last time, or makes now.

    It is made each time where the store tells no versions, or the cache cannot be written.
    """
    place = cache_folder() / "digests" / f"{listing_key(files)}.{purpose}"
    known = all(file.version for file in files.values())
    if known:
        with contextlib.suppress(OSError):
            text = place.read_text(encoding="ascii")
            if len(text) == 65 and text.endswith("\n"):  # a digest, and whole
                return text.strip()
    digest = make()
    if known:
        with contextlib.suppress(OSError):  # it only saves time
            place.parent.mkdir(parents=True, exist_ok=True)
            aside = place.with_name(f"{place.name}.{os.getpid()}")
            aside.write_text(digest + "\n", encoding="ascii")
            aside.replace(place)
    return digest
