"""The score of a gradient that was formed already, as training forms it: a pass over memory. Knows no layer."""

import torch
from torch import Tensor

from synpro_kernels.ops.grad_dot.implementation import use_csrc

_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 24}  # entries multiplied at once: on a CPU, what its cache holds


def formed_dot(gradient: Tensor, direction: Tensor) -> Tensor:
    """<G, V_k>: gradient [P, ...], direction [K, P, ...], any floating dtypes; fp64 [K].

    Multiplied in the wider of the two dtypes, in fp32 at least; summed in fp32 over short runs, or pairwise within a
    block, and in fp64 over those (a library's dot product runs through all of it in one fp32 sum, with ten times the
    error). Raises ValueError for shapes that do not match.
    """
    if gradient.dim() == 0 or direction.shape[1:] != gradient.shape:
        raise ValueError(f"direction: expected [K, *{tuple(gradient.shape)}], got {tuple(direction.shape)}")
    if use_csrc(gradient) and gradient.dtype == direction.dtype == torch.float32 and direction.is_contiguous():
        return torch.ops.synpro_csrc.formed_dot(gradient.reshape(-1), direction.flatten(1))
    kind = torch.promote_types(torch.promote_types(gradient.dtype, direction.dtype), torch.float32)
    size = _BLOCK.get(gradient.device.type, _BLOCK["cuda"])
    if gradient.numel() <= size:  # most of a model's parameters; it is their number that costs, not their size
        return _block_dot(gradient, direction, kind)
    pairs = zip(gradient.reshape(-1).split(size), direction.flatten(1).split(size, 1), strict=True)
    return torch.stack([_block_dot(part, along, kind) for part, along in pairs]).sum(0)


def _block_dot(gradient: Tensor, direction: Tensor, kind: torch.dtype) -> Tensor:
    return (direction.to(kind) * gradient.to(kind)).flatten(1).sum(1).double()
