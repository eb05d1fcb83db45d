"""`formed_dot` in PyTorch: block by block, so that a wider copy of a half-precision gradient never exists whole."""

import torch
from torch import Tensor

_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 24}  # entries multiplied at once: on a CPU, what its cache holds


def formed_dot(gradient: Tensor, direction: Tensor) -> Tensor:
    """<G, V_k> in fp64 [K], multiplied in the wider of the dtypes and at least in fp32."""
    kind = torch.promote_types(torch.promote_types(gradient.dtype, direction.dtype), torch.float32)
    size = _BLOCK.get(gradient.device.type, _BLOCK["cuda"])
    if gradient.numel() <= size:  # most of a model's parameters; it is their number that costs, not their size
        return _block_dot(gradient, direction, kind)
    pairs = zip(gradient.reshape(-1).split(size), direction.flatten(1).split(size, 1), strict=True)
    return torch.stack([_block_dot(part, along, kind) for part, along in pairs]).sum(0)


def _block_dot(gradient: Tensor, direction: Tensor, kind: torch.dtype) -> Tensor:
    return (direction.to(kind) * gradient.to(kind)).flatten(1).sum(1).double()
