"""Cutting work into blocks, so that what lies between two matrix products never exists whole."""

from collections.abc import Iterator

from torch import Tensor

# A CPU's caches hold about this much, so what one GEMM wrote is still there for the next; a GPU wants long GEMMs.
_BLOCK_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}


def pieces(total: int, size: int) -> Iterator[slice]:
    """Cut range(total) into slices of `size`, or of 1 where it is less."""
    # Callers divide a budget by a row's bytes: a row wider than the budget gives 0, and range would raise.
    size = max(1, size)
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def block_bytes(like: Tensor) -> int:
    """How large a block of intermediate results should be on the tensor's device."""
    return _BLOCK_BYTES.get(like.device.type, _BLOCK_BYTES["cuda"])
