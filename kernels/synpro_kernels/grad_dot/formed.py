"""The score of a gradient that was formed already, as training forms it: a pass over memory. Knows no layer."""

import torch
from torch import Tensor

_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 24}  # entries multiplied at once: on a CPU, what its cache holds


def formed_dot(gradient: Tensor, direction: Tensor) -> Tensor:
    """<G, V_k>: gradient [...], direction [K, ...], any floating dtypes; fp64 [K].

    Multiplied in the wider of the two dtypes, in fp32 at least; summed pairwise within a block (a library's dot product
    runs through all of it in one fp32 sum, with ten times the error), and the blocks' sums in fp64. Raises ValueError
    for shapes that do not match.
    """
    if direction.shape[1:] != gradient.shape:
        raise ValueError(f"direction: expected [K, *{tuple(gradient.shape)}], got {tuple(direction.shape)}")
    kind = torch.promote_types(torch.promote_types(gradient.dtype, direction.dtype), torch.float32)
    gradient_P = gradient.detach().reshape(-1)
    direction_KP = direction.detach().reshape(len(direction), len(gradient_P))
    total_K = torch.zeros(len(direction_KP), dtype=torch.float64, device=gradient.device)
    size = _BLOCK.get(gradient.device.type, _BLOCK["cuda"])
    for start in range(0, len(gradient_P), size):
        part = slice(start, start + size)
        total_K += (direction_KP[:, part].to(kind) * gradient_P[part].to(kind)).sum(1)
    return total_K
