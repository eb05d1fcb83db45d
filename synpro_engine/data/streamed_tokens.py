"""Token ids of a file in a store, sliced as a mapped file is: blocks are fetched as they are wanted, a few are held."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from synpro_engine.storage import RemoteFile

_BLOCK_BYTES = 1 << 23
_HELD = 4  # blocks: documents are looked at just behind the search for where they end


class TokenIds(Protocol):
    """What is read of a row of ids: its length, type and stretches."""

    @property
    def itemsize(self) -> int:
        """Bytes of an id."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> NDArray[np.integer]: ...


class StreamedTokens:
    """Ids [T] of an integer type that lie in `file` from a byte on, to its end or as many as `length`."""

    def __init__(
        self, file: RemoteFile, dtype: np.dtype[Any], *, first_byte: int = 0, length: int | None = None
    ) -> None:
        self._file, self._dtype, self._first = file, dtype, first_byte
        self._length = (file.size - first_byte) // dtype.itemsize if length is None else length
        self._opened = file.open_ranges()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    @property
    def itemsize(self) -> int:
        """Bytes of an id."""
        return self._dtype.itemsize

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> NDArray[np.integer]:
        """A stretch of ids, which is read in any order and cheaply from the beginning to the end."""
        begin, end, step = part.indices(self._length)
        assert step == 1
        first, last = (self._first + at * self.itemsize for at in (begin, max(begin, end)))
        numbers = range(first // _BLOCK_BYTES, -(-last // _BLOCK_BYTES))
        joined = b"".join(map(self._block, numbers))
        offset = first - numbers.start * _BLOCK_BYTES
        return np.frombuffer(joined[offset : offset + last - first], self._dtype)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            self._opened.seek(number * _BLOCK_BYTES)
            self._blocks[number] = self._opened.read(_BLOCK_BYTES)
        self._blocks.move_to_end(number)
        while len(self._blocks) > _HELD:
            self._blocks.popitem(last=False)
        return self._blocks[number]
