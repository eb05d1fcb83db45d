"""`store_heads`: from a block's fused product to rotated queries, and keys and values in the cache.

Shape suffixes: B rows, F = n (r + 2) h, n key heads, r query heads per key head, h head width, P pages of T positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise
from synpro_kernels.common.dispatch import Backends
from synpro_kernels.ops.decode_attention.types import HeadNorm


def store_heads(
    mixed_BF: Tensor,
    cos_Bh: Tensor,
    sin_Bh: Tensor,
    key_PnTh: Tensor,
    value_PnTh: Tensor,
    page_B: Tensor,
    time_B: Tensor,
    norm: HeadNorm | None,
) -> Tensor:
    """Norm and rotate (arXiv 2104.09864, pairs i and i + h/2) queries and keys of one position a row; store the latter.

    Args:
        mixed_BF: for each key head its r query heads, its key and its value; any float dtype, as the buffers'.
        cos_Bh: of the positions' angles, fp32, each frequency in both halves.
        sin_Bh: likewise.
        key_PnTh: pages that row b's key is written to, at position time_B[b] of page page_B[b].
        value_PnTh: likewise for the values, with the strides of the keys'.
        page_B: int64; no place is written twice.
        time_B: int64.
        norm: None where queries and keys have none.

    Returns:
        Queries [B, n, r, h] in the dtype of `mixed_BF`, contiguous; sums are fp32 (fp64 for fp64).

    """
    return _STORE.kernels(mixed_BF)(mixed_BF, cos_Bh, sin_Bh, key_PnTh, value_PnTh, page_B, time_B, norm)


def _torch(
    mixed_BF: Tensor, cos_Bh: Tensor, sin_Bh: Tensor, key_PnTh: Tensor, value_PnTh: Tensor, page_B: Tensor,
    time_B: Tensor, norm: HeadNorm | None,
) -> Tensor:  # fmt: skip
    n, h = key_PnTh.shape[1], key_PnTh.shape[3]
    heads = mixed_BF.unflatten(-1, (n, -1, h))
    query, key = precise(heads[..., :-2, :]), precise(heads[..., -2:-1, :])
    if norm is not None:
        over = (-1,) if norm.by_head else (-3, -2, -1)
        means = [x.square().mean(over, keepdim=True) for x in (query, key)]
        if norm.means_B2 is not None:
            means = [mean_B[:, None, None, None] for mean_B in norm.means_B2.unbind(-1)]
        weights = (weight if norm.by_head else weight.view(n, -1, h) for weight in (norm.query_weight, norm.key_weight))
        query, key = (
            x * torch.rsqrt(mean + norm.eps) * weight
            for x, mean, weight in zip((query, key), means, weights, strict=True)
        )
    turned = torch.cat((query, key), -2)
    first, second = turned.chunk(2, -1)
    turned = turned * cos_Bh[:, None, None] + torch.cat((-second, first), -1) * sin_Bh[:, None, None]
    turned = turned.to(mixed_BF.dtype)
    key_PnTh[page_B, :, time_B] = turned[..., -1, :]
    value_PnTh[page_B, :, time_B] = heads[..., -1, :]
    return turned[..., :-1, :].contiguous()


def _csrc(
    mixed_BF: Tensor, cos_Bh: Tensor, sin_Bh: Tensor, key_PnTh: Tensor, value_PnTh: Tensor, page_B: Tensor,
    time_B: Tensor, norm: HeadNorm | None,
) -> Tensor:  # fmt: skip
    weights, eps, by_head = (None, None, None), 0.0, False
    if norm is not None:
        weights, eps, by_head = (norm.query_weight, norm.key_weight, norm.means_B2), norm.eps, norm.by_head
    return torch.ops.synpro_csrc.store_heads(
        mixed_BF, cos_Bh.contiguous(), sin_Bh.contiguous(), key_PnTh, value_PnTh,
        page_B.contiguous(), time_B.contiguous(), *weights, eps, by_head,
    )  # fmt: skip


def _triton() -> Callable[..., Tensor]:
    from synpro_kernels.ops.decode_attention.triton_heads import store_heads as fused

    return fused


_STORE: Backends[Callable[..., Tensor]] = Backends(
    torch=_torch, csrc=lambda: _csrc, csrc_dtypes=(torch.bfloat16, torch.float32), triton=_triton,
    triton_multiplies=False,
)  # fmt: skip
