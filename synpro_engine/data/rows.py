"""Lists of ids end to end, as many texts give them at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Rows(NamedTuple):
    """tokens [N] int32 of all lists, and the length of each, lengths [D] int64."""

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int64]


def rows_of(lists: Sequence[Sequence[int]]) -> Rows:
    """Lists of ids as one row."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    return Rows(np.fromiter(chain.from_iterable(lists), np.int32, int(lengths.sum())), lengths)
