"""Files in a store, read by ranges: what a cut connection took is asked for again from where it broke.

A file is the one that was listed: where its version is another one by now, that is an error and not other text.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from synpro_engine.config import UserError
from synpro_engine.storage.faults import Attempts
from synpro_engine.storage.opening import open_store

BLOCK = 1 << 23
"""Bytes asked for at once; two blocks of a file are held while it is read."""
_BUFFER = 1 << 16
_LEAST = 1 << 18
_BY_VERSION = {"s3"}
"""Stores that are asked for ranges of a version; of others the version is looked at again."""
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "xet_hash", "generation", "LastModified", "updated", "mtime")


class Status(NamedTuple):
    """As of `Path.stat`."""

    st_size: int


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a store, as it was when it was listed; it opens as a path does."""

    address: str
    size: int
    """In bytes."""
    version: str
    """What changes with its content: the store's tag, or else its time; "" where the store tells neither."""

    @classmethod
    def of(cls, address: str, info: Mapping[str, Any]) -> RemoteFile:
        """From what fsspec tells of a file."""
        version = next((str(info[key]).strip('"') for key in _VERSIONS if info.get(key)), "")
        return cls(address, int(info["size"] or 0), version)

    def __str__(self) -> str:
        """The address."""
        return self.address

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    def stat(self) -> Status:
        """Its size."""
        return Status(self.size)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Read it from the beginning to the end, a block ahead. UserError names it where it cannot be read."""
        assert mode == "rb", mode
        return io.BufferedReader(_Ahead(self), _BUFFER)

    def open_ranges(self) -> BinaryIO:
        """Read it anywhere; little more is fetched than is asked for."""
        return io.BufferedReader(_Ranges(self), _BUFFER)

    def read(self, start: int, size: int) -> bytes:
        """At most `size` bytes from `start` on."""
        with self.open_ranges() as file:
            file.seek(start)
            return file.read(size)


class _Fetcher:
    """Ranges of one file, one at a time."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._handle = file, None
        self._most, self._next = BLOCK, 0
        self.stop = threading.Event()

    def fetch(self, start: int, size: int) -> bytes:
        """Some bytes from `start` on, at most `size` and at least one before the file's end."""
        size = min(size, self._most, self._file.size - start)
        if size <= 0:
            return b""
        attempts = Attempts(self._file.address, stop=self.stop)
        while True:
            try:
                data = self._ask(start, size)
            except UserError:
                raise
            except Exception as error:
                attempts.failed(error)
                # Less at a time over a connection that does not last.
                size = self._most = max(min(size, _LEAST), size // 2)
            else:
                attempts.succeeded()
                self._most = min(BLOCK, self._most + _LEAST)
                return data

    def _ask(self, start: int, size: int) -> bytes:
        if self._handle is None:
            self._handle = self._open()
        self._handle.seek(start)
        data = self._handle.read(size)
        if not data:
            raise TimeoutError(f"ended after {start} of {self._file.size} bytes")
        if len(data) > size:
            raise UserError(f"{self._file}: its store answers with more than was asked for, and reads no ranges")
        end = start + len(data)
        if self._file.address.partition(":")[0] not in _BY_VERSION and (start != self._next or end == self._file.size):
            self._compare(self._look())
        self._next = end
        return data

    def _open(self) -> Any:
        store, path = open_store(self._file.address)
        # Without a cache of its own: blocks are ours, and each range is one request.
        handle = store.open(path, "rb", cache_type="none")
        self._compare(handle.details)
        return handle

    def _look(self) -> Mapping[str, Any]:
        store, path = open_store(self._file.address)
        store.invalidate_cache()
        return store.info(path)

    def _compare(self, details: Mapping[str, Any]) -> None:
        now = RemoteFile.of(self._file.address, details)
        if (now.size, now.version) != (self._file.size, self._file.version):
            raise UserError(f"{self._file}: was changed while it was read; begin again")

    def close(self) -> None:
        self.stop.set()


class _Ranges(io.RawIOBase):
    """A file to seek in."""

    def __init__(self, file: RemoteFile) -> None:
        self._size, self._fetcher, self._at = file.size, _Fetcher(file), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._fetcher.fetch(self._at, min(len(buffer), BLOCK))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._fetcher.close()
        super().close()


class _Ahead(io.RawIOBase):
    """A file from its beginning to its end, of which the next block is on its way while one is read."""

    def __init__(self, file: RemoteFile) -> None:
        self._fetcher, self._pool = _Fetcher(file), ThreadPoolExecutor(1, "read-ahead")
        self._end = 0  # of what has been asked for and came
        self._block, self._next = memoryview(b""), self._ask()

    def _ask(self) -> Future[bytes]:
        return self._pool.submit(self._fetcher.fetch, self._end, BLOCK)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._block:
            self._block = memoryview(self._next.result())
            if not self._block:
                return 0
            self._end += len(self._block)
            self._next = self._ask()
        count = min(len(buffer), len(self._block))
        buffer[:count] = self._block[:count]
        self._block = self._block[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._fetcher.close()
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()
