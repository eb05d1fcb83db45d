"""The file system behind an address, as fsspec opens it."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

from synpro_engine.config import UserError
from synpro_engine.storage.places import STORES

# Two parts of a large file in memory at a time.
_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"max_concurrency": 2}}


def open_store(address: str, *, writing: bool = False) -> tuple[Any, str]:
    """(fsspec's file system, the path in it) of an address; UserError where the package for it is not installed."""
    scheme = address.partition(":")[0]
    need = STORES[scheme]
    if importlib.util.find_spec(need.package) is None:
        raise UserError(f"{address}: {need.package} is not installed (pip install 'synpro_engine[{need.extra}]')")
    store = store_of(scheme, writing)
    return store, store._strip_protocol(address)


@functools.cache
def store_of(scheme: str, writing: bool) -> Any:
    """The file system of a kind of address, one for the process: fsspec would make one for each thread, with clients.

    Listings are looked at once and must be those of now, so none is kept.
    """
    import fsspec  # slow to import: only what lies in a store pays for it

    store = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **_OPTIONS.get(scheme, {}))
    if scheme == "s3" and not writing:
        # Its own attempts would ask for the same range again and again, where less may get through; parts of uploads
        # are worth them.
        store.retries = 1
    return store
