"""Which keys came before, in bounded memory: 12 to 24 bytes a key, whatever its length.

A Python set of digests would take about 100 bytes a key.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_SLICE = 1 << 20  # hashes placed at once
_SPARE = 64  # places behind the last home


class SeenKeys:
    """A set of keys by 64 bits of their BLAKE2b: of 100 million, the chance that any two are taken for one is 0.03 %.

    A table with linear probing. A hash's home is its leading bits, so that sorted hashes are in the order of their
    homes, and a larger table is filled without a loop over them.
    """

    def __init__(self, hashes: NDArray[np.uint64] | None = None) -> None:
        """hashes: of the keys that are there already, as `last` gave them, in any order."""
        known = np.empty(0, dtype=np.uint64) if hashes is None else np.sort(hashes)
        self.count, self.last = len(known), 0
        """Different keys, and the hash of the last one added."""
        self._place(known, bits=max(10, (len(known) * 3 // 2).bit_length()))

    def add(self, key: bytes) -> bool:
        """Add `key`; False when it was there."""
        hash = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") or 1  # 0 is an empty place
        self.last = hash
        table, at = self._table, hash >> self._shift
        while there := table[at]:
            if there == hash:
                return False
            at += 1
        table[at] = hash
        self.count += 1
        # The last place stays empty: there every search ends.
        # At two thirds: beyond, linear probing looks at ever more places for a key that is new.
        if self.count > self._most or at == len(table) - 1:
            known = np.sort(self._hashes[self._hashes != 0])
            del self._hashes, self._table, table  # before a table of twice the size is there as well
            self._place(known, bits=65 - self._shift)
        return True

    def _place(self, sorted_N: NDArray[np.uint64], bits: int) -> None:
        """Make a table of 2**bits homes and put the hashes there: each at its home, or behind the one before it."""
        self._shift, self._most = 64 - bits, (1 << bits) * 2 // 3
        self._hashes, last = np.zeros((1 << bits) + _SPARE, dtype=np.uint64), -1
        for start in range(0, len(sorted_N), _SLICE):
            part = sorted_N[start : start + _SLICE]
            order = np.arange(len(part), dtype=np.int64)
            home = (part >> np.uint64(self._shift)).astype(np.int64)
            # Linear probing of sorted hashes in closed form: each at its home, or one behind
            # the last, whichever is further.
            place = np.maximum.accumulate(np.maximum(home - order, last + 1)) + order
            last = int(place[-1])
            if last >= len(self._hashes) - 1:  # a crowd at the very end
                self._hashes = np.append(self._hashes, np.zeros(len(part) + _SPARE, dtype=np.uint64))
            self._hashes[place] = part
        self._table = self._hashes.data  # its items are plain integers, several times faster to get than an array's
