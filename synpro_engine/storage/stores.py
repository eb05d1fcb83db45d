"""What lies in a store: one file, or all below an address, whose names stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from synpro_engine.config import UserError
from synpro_engine.storage.faults import Attempts, kind_of, told
from synpro_engine.storage.opening import open_store
from synpro_engine.storage.reading import RemoteFile

_Result = TypeVar("_Result")
_DENIED = "; who may read and not list names a file, or files as part-{000..099}.jsonl.zst"


def patiently(address: str, ask: Callable[[], _Result], patience_s: float | None = None) -> _Result:
    """What `ask` returns, asked again after faults that pass; UserError names the address.

    patience_s: for how long; None: as long as the store is known to be there, or may not be there at all.
    """
    attempts = Attempts(address, patience_s)
    while True:
        try:
            result = ask()
        except UserError:
            raise
        except Exception as error:
            attempts.failed(error)
        else:
            attempts.succeeded()
            return result


def find_file(address: str) -> RemoteFile | None:
    """The file at an address; None for a folder, or for nothing that is there."""
    store, path = open_store(address)

    def ask() -> dict[str, Any] | None:
        store.invalidate_cache()
        with _explained(address):
            try:
                return store.info(path)
            except FileNotFoundError:
                return None

    info = patiently(address, ask)
    return None if info is None or info["type"] != "file" else RemoteFile.of(address, info)


def find_files(address: str, *, nested: bool = True) -> list[RemoteFile]:
    """All files below an address, through all its folders if `nested`, in any order; none where nothing is there.

    UserError where the bucket is not there, or may not be listed.
    """
    store, path = open_store(address)

    def ask() -> Sequence[dict[str, Any]]:
        store.invalidate_cache()
        with _explained(address):
            try:
                # Never `find` to a depth: on its way it passes over folders that fail, as if they were empty.
                return list(store.find(path, detail=True).values()) if nested else store.ls(path, detail=True)
            except FileNotFoundError as error:
                if "/" not in address.partition("://")[2] or "bucket" in str(error).lower():
                    raise  # not a folder but the bucket itself
                return []

    base = path.rstrip("/") + "/"
    return [
        RemoteFile.of(f"{address.rstrip('/')}/{info['name'].removeprefix(base)}", info)
        for info in patiently(address, ask)
        # Stores have no folders; some tools mark one by an empty file whose name ends in a slash.
        if info["type"] == "file" and info["name"].startswith(base) and not info["name"].endswith("/")
    ]


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """What a denied listing can be helped by."""
    try:
        yield
    except Exception as error:
        if kind_of(error) == "denied":
            raise UserError(f"{told(address, error, 'denied')}{_DENIED}") from None
        raise
