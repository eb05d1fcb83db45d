"""Keys and values of the sequences being decoded, in pages of one pool.

A page holds `PAGE` positions in every layer. Pages are taken as sequences grow and given back when these end, so memory
goes with the tokens that are live, whatever the longest of them may become. A group's prompt is stored once, and so is
a whole page of ids that several prompts begin with: a page whose ids and all ids before it are known is found again.

Shape suffixes: N tokens, n key heads, h head width.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

PAGE = 32
"""Positions of a page: of the last one of a sequence half is empty on average, and a kernel's tile holds whole ones."""
_GROWTH = 4  # pages that a pool gets when it has none left: a quarter of what it has, for growing copies all of it


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """What one position costs: layers, key heads of this rank, head width, storage dtype and device."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one position's keys and values over all layers of this rank."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def bytes_per_page(self) -> int:
        """Bytes of a page over all layers."""
        return PAGE * self.bytes_per_token


def pages_for(positions: int) -> int:
    """Pages that hold so many positions."""
    return -(-positions // PAGE)


def page_keys(prompt: Sequence[int]) -> list[bytes]:
    """A name for each whole page of a prompt, of its ids and all before it. Its last token's page has none.

    That token is read for each prompt by itself, for what follows it is what is asked for.
    """
    ids, keys, key = np.asarray(prompt, dtype=np.int64), list[bytes](), b""
    for start in range(0, (len(prompt) - 1) // PAGE * PAGE, PAGE):
        key = hashlib.blake2b(key + ids[start : start + PAGE].tobytes(), digest_size=16).digest()
        keys.append(key)
    return keys


def new_pages(shape: CacheShape, pages: int) -> Tensor:
    """Room for one layer's keys and values, [2, pages, n, PAGE, h]."""
    # Heads before positions: a page's keys of one head are one run of memory, as attention's products read them.
    size = (2, pages, shape.kv_heads, PAGE, shape.head_dim)
    return torch.zeros(size, dtype=shape.dtype, device=shape.device)


class PagePool:
    """Per layer, keys and values [pages, n, PAGE, h]. Readers of a page are counted; prompts' pages are found again.

    Pages start as zeros: attention may multiply what lies behind a sequence's end by weights of exactly 0, which a NaN
    in uninitialised memory would survive.
    """

    def __init__(self, shape: CacheShape, most: int, made: Sequence[Tensor] | None = None) -> None:
        """`most` pages may be live at once, and more where `take` is told to.

        made: buffers of as many pages for each layer, as `new_pages` makes them; without them pages are made as they
        are taken.
        """
        self._shape, self._most = shape, most
        self._buffers = [new_pages(shape, 0) for _ in range(shape.layers)] if made is None else list(made)
        self._free = list(range(self._buffers[0].shape[1] - 1, -1, -1))
        self._readers = [0] * len(self._free)
        """By page: how many groups and sequences have it."""
        self._known = dict[bytes, int]()
        self._key = dict[int, bytes]()
        self._idle = OrderedDict[int, None]()
        """Known pages that nobody has, the longest idle first: taken where no other is free."""
        self.peak = 0
        """Most pages that were live at once."""

    @property
    def bytes(self) -> int:
        """Memory of the pages that were made, over all layers."""
        return len(self._readers) * self._shape.bytes_per_page

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where the pages of each layer lie; they move when the pool grows."""
        return tuple(buffer.data_ptr() for buffer in self._buffers)

    @property
    def _live(self) -> int:
        return len(self._readers) - len(self._free) - len(self._idle)

    @property
    def available(self) -> int:
        """Pages that can be taken."""
        return max(0, self._most - self._live)

    def cost(self, keys: Iterable[bytes]) -> int:
        """How many of the available pages it takes to have the pages of these names."""
        return sum(1 for key in keys if key not in self._known or self._known[key] in self._idle)

    def take(self, count: int) -> list[int]:
        """So many pages with a reader each. What is beyond `available` is had all the same: ask before."""
        pages = [self._one(count - at) for at in range(count)]
        for page in pages:
            self._readers[page] = 1
        self.peak = max(self.peak, self._live)
        return pages

    def _one(self, wanted: int) -> int:
        if not self._free and (len(self._readers) < self._most or not self._idle):
            self._grow(wanted)
        if self._free:
            return self._free.pop()
        page, _ = self._idle.popitem(last=False)
        del self._known[self._key.pop(page)]
        return page

    def _grow(self, wanted: int) -> None:
        made = len(self._readers)
        more = max(wanted, min(made // _GROWTH, self._most - made))
        for layer, old in enumerate(self._buffers):  # one layer at a time: the peak is one layer above the sum
            self._buffers[layer] = new_pages(self._shape, made + more)
            self._buffers[layer][:, :made] = old
        self._readers += [0] * more
        self._free += range(made + more - 1, made - 1, -1)

    def knows(self, key: bytes) -> bool:
        """Whether a page of this name can be found."""
        return key in self._known

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The pages of the first of these names, as far as they are known, with a reader more each."""
        pages = [self._known[key] for key in takewhile(self._known.__contains__, keys)]
        for page in pages:
            self._readers[page] += 1
            self._idle.pop(page, None)
        self.peak = max(self.peak, self._live)
        return pages

    def publish(self, keys: Sequence[bytes], pages: Sequence[int]) -> None:
        """These pages are filled by now, with what these names stand for."""
        for key, page in zip(keys, pages, strict=True):
            if key not in self._known:  # two prompts of one pass may have begun alike: the first one's page is found
                self._known[key], self._key[page] = page, key

    def release(self, pages: Iterable[int]) -> None:
        """One reader less of each."""
        for page in pages:
            self._readers[page] -= 1
            if self._readers[page] == 0:
                if page in self._key:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [pages, n, PAGE, h] of a layer, the buffers themselves."""
        return self._buffers[layer][0], self._buffers[layer][1]

    def write(self, layer: int, page_N: Tensor, time_N: Tensor, key_Nnh: Tensor, value_Nnh: Tensor) -> None:
        """Store N tokens, each at a place of its own in a page."""
        self._buffers[layer][0][page_N, :, time_N] = key_Nnh
        self._buffers[layer][1][page_N, :, time_N] = value_Nnh


def page_table(pages: Sequence[Sequence[int]], least: int = 0) -> list[int]:
    """The rows' pages as a table, row after row, `least` wide at least; behind a row's last page stands page 0, which
    is not read there."""
    width = max(least, *map(len, pages))
    return [page for row in pages for page in (*row, *[0] * (width - len(row)))]
