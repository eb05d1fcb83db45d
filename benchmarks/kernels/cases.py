"""The ops at one size each: what they are given, what plain PyTorch makes of the same, and what work there is.

`plain` is what one would write without the op, in whatever dtype it is given, so that in fp64 it is the truth. FLOPs
are those of the products that must be made, bytes those that must be read and written once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels.case import Case, Sizes
from benchmarks.kernels.decoding import of_decoding
from benchmarks.kernels.influence import of_influence
from benchmarks.kernels.output_layer import of_the_output_layer
from benchmarks.kernels.training import of_the_optimizer, of_training


def cases(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """All of them, each made when it is its turn, for a GPU could not hold them all."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, device=device) * std).to(dtype)

    yield from of_the_output_layer(sizes, normal, generator)
    yield from of_influence(sizes, normal)
    yield from of_training(sizes, normal)
    yield from of_decoding(sizes, normal, generator)
    yield from of_the_optimizer(sizes, normal)
