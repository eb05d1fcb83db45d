"""The repetition filter: which windows are mostly one short phrase again and again.

Such windows give large, useless gradients; the published runs mask their loss.
"""

import numpy as np
from numpy.typing import NDArray


def repetition_mask(
    tokens_BS: NDArray[np.integer], *, max_period: int = 13, min_repeats: int = 32
) -> NDArray[np.bool_]:
    """Return for each window whether an n-gram of 1 to `max_period` tokens stands `min_repeats` times in a row.

    tokens_BS [B, S] ids -> bool [B]. A period p that repeats r times is a run of (r - 1) * p positions at which
    a token equals the one p before it, so one comparison and one running sum a period find it.
    """
    found_B = np.zeros(len(tokens_BS), dtype=bool)
    for period in range(1, max_period + 1):
        run = (min_repeats - 1) * period
        equal_BT = tokens_BS[:, period:] == tokens_BS[:, :-period]
        if equal_BT.shape[1] < run:
            break
        sums_BT = np.pad(np.cumsum(equal_BT, axis=1, dtype=np.int32), ((0, 0), (1, 0)))
        found_B |= (sums_BT[:, run:] - sums_BT[:, :-run] == run).any(axis=1)
    return found_B
