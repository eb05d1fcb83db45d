"""A Triton launch as a value: the same call is launched, interpreted, or compiled for a GPU that is not there.

Does not import Triton: a kernel is whatever can be indexed by a grid and called.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Sizes and strides are multiples of this: the divisibility that Triton compiles wide pointer loads for; tensor
# descriptors ask for half of it, 16 bytes.
_MULTIPLE = 16


class Call(NamedTuple):
    """A kernel with everything it is launched with; `outputs` are what it writes."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    outputs: tuple[Tensor, ...]

    def launch(self) -> tuple[Tensor, ...]:
        """Run it on its outputs' device, which need not be the current one, and return the outputs."""
        # Triton launches on the current device; pointers into another one's memory are an illegal access there.
        with torch.cuda.device_of(self.outputs[0]):
            self.kernel[self.grid](*self.arguments, **self.options)
        return self.outputs


class Tile(NamedTuple):
    """BM x BN of a matrix product, BK of the contracted side at a time; names as the kernels' constants."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int


def ceil_div(total: int, size: int) -> int:
    """Return the number of pieces of `size` that cover `total`."""
    return -(-total // size)


def capability_of(tensor: Tensor) -> int:
    """Return the compute capability as 80, 90, ...; CPU tensors (the interpreter) pass for sm_80."""
    if not tensor.is_cuda:
        return 80
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return major * 10 + minor


def aligned(tensor: Tensor, *, rows_too: bool = False) -> Tensor:
    """Return the tensor, or a copy with zeros added, whose rows are contiguous, 16 n long and on 16 bytes.

    rows_too: their number becomes such a multiple as well, to meet columns that were added to another tensor.
    """
    columns = -tensor.shape[-1] % _MULTIPLE
    rows = -tensor.shape[-2] % _MULTIPLE if rows_too else 0
    if columns or rows:  # zeros add nothing to a product, so no kernel needs to know of them
        return F.pad(tensor, (0, columns, 0, rows))
    # All strides but the last, that of K directions included: a descriptor wants each on 16 bytes.
    fits = all(stride % _MULTIPLE == 0 for stride in tensor.stride()[:-1])
    if tensor.stride(-1) == 1 and fits and tensor.data_ptr() % 16 == 0:
        return tensor
    # A copy starts on the allocator's alignment too (512 bytes on CUDA), which a slice of a tensor may have left.
    return tensor.clone(memory_format=torch.contiguous_format)
