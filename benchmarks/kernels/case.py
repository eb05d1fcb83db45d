"""What a case of the ops' benchmark is, the sizes that all are cut from, and what plain versions share.

Shapes: T tokens, H width, V vocabulary, S segments, B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
Run = Callable[[Inputs], tuple[Tensor, ...]]
Normal = Callable[..., Tensor]
"""Random numbers of a shape, in the benchmark's dtype and on its device; `std`: their standard deviation."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What all cases are cut from."""

    tokens: int
    width: int
    ffn: int
    vocab: int
    rows: int
    segments: int = 8
    rivals: bool = True
    """Whether others than plain PyTorch compete too."""
    product: int | None = None
    """Side of the product that tells the machine's rate; None: one that is large for the device."""


CPU_SIZES = Sizes(tokens=1024, width=512, ffn=1408, vocab=8192, rows=32)
CUDA_SIZES = Sizes(tokens=8192, width=2048, ffn=8192, vocab=100352, rows=256, segments=16)
SIZES = {
    # No tile divides them; right or wrong shows, and no time can be read from them.
    "tiny": Sizes(tokens=72, width=64, ffn=96, vocab=301, rows=16, segments=3, rivals=False, product=64),
    "cpu": CPU_SIZES,
    "cuda": CUDA_SIZES,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op. limit_flops and limit_bytes: the least work; results are compared entry by entry."""

    name: str
    inputs: Inputs
    ours: Run
    plain: Run
    limit_flops: float
    limit_bytes: float
    rivals: Mapping[str, Callable[[], Run]] = field(default_factory=dict)
    """Others beside plain PyTorch by name; each is loaded when asked, and an ImportError means that it is not here."""


def with_gradients(loss: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    """A loss of tensors, and its gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    with torch.enable_grad():
        value = loss(*leaves)
        value.backward()
    return (value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None))


def through(function: Callable[..., Tensor], upon: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """What a function makes of tensors, and their gradients under a given one of its result."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    with torch.enable_grad():
        out = function(*leaves)
    return (out.detach(), *torch.autograd.grad(out, leaves, upon))


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype of its sums."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def bytes_of(*tensors: Tensor) -> float:
    """Of all together."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
