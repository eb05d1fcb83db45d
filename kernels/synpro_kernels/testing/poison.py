"""Makes an element that a kernel forgot to write visible: new memory is NaN."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def nan_filled_empty() -> Iterator[None]:
    """Within it, torch.empty, empty_like, new_empty and resize_ give NaN (integers: the largest value), on any device.

    torch does so itself in deterministic mode, unless `fill_uninitialized_memory` was turned off. Operators without a
    deterministic form warn there and still run.
    """
    mode = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
