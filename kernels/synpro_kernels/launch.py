"""A Triton launch as a value, so that what is launched on a GPU can also be compiled without one."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """A kernel with all it is launched with; `outputs` are what it writes."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    outputs: tuple[Tensor, ...]

    def launch(self) -> None:
        """Run it on its outputs' device, which need not be the current one."""
        with torch.cuda.device_of(self.outputs[0]):
            self.kernel[self.grid](*self.arguments, **self.options)


def ceil_div(total: int, size: int) -> int:
    """Return the number of pieces of `size` that cover `total`."""
    return -(-total // size)
