"""Attention of decoding in plain PyTorch, in fp32 at least whatever the cache's dtype.

Shape suffixes as in `op`; N and Q are any rows and queries.
"""

import math

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise
from synpro_kernels.ops.decode_attention.types import DecodeRows


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention and the log of its softmax sum: query [N, n, Q, h], key and value [N, n, T, h].

    `bias` [N, 1, q, T]: one row of it for Q / q queries next to each other.
    Returns out [N, n, Q, h] and log_sum [N, n, Q, 1]. For a few queries per key this beats the fused kernel on
    the CPU and, unlike it, gives the log-sum. The largest weight is 1/sum, hence its log is minus the log-sum's rest.
    """
    score = precise(query) @ precise(key).mT
    if bias is not None:
        score.unflatten(2, (bias.shape[2], -1)).add_(bias[:, :, :, None])
    weight = torch.softmax(score, -1)
    log_sum = score.amax(-1, keepdim=True) - weight.amax(-1, keepdim=True).log()
    return weight @ precise(value), log_sum


def _attend_together(
    query_Bnrh: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, row_of_place: Tensor, place_of_row_B: Tensor
) -> tuple[Tensor, Tensor]:
    """`_attend` by rows [B, n, r, ...] of which several share keys: they stand at places next to each other."""
    n, r, h = query_Bnrh.shape[1:]
    # [N, n, M r, h]: queries side by side are one product, as in Hydragen (arXiv 2402.05099).
    together = query_Bnrh.index_select(0, row_of_place).unflatten(0, (len(key), -1))
    out, log_sum = _attend(together.transpose(1, 2).reshape(len(key), n, -1, h), key, value, bias)
    out, log_sum = (part.unflatten(2, (-1, r)).transpose(1, 2).flatten(0, 1) for part in (out, log_sum))
    return out.index_select(0, place_of_row_B), log_sum.index_select(0, place_of_row_B)


def _in_order(pages: Tensor, page_NX: Tensor, longest: int) -> Tensor:
    """[N, n, longest, h], copied from pages [P, n, T, h]."""
    return pages[page_NX].transpose(1, 2).flatten(2, 3)[:, :, :longest]


def decode_attention(query_Bnrh: Tensor, key_PnTh: Tensor, value_PnTh: Tensor, rows: DecodeRows) -> Tensor:
    """Softmax over prompt and new positions apart, merged by their log-sums."""
    dtype, h = query_Bnrh.dtype, query_Bnrh.shape[-1]
    # On the query rather than on the scores, of which there are r for each position.
    query_Bnrh = query_Bnrh * (1.0 / math.sqrt(h))
    key, value = (_in_order(pages, rows.prompt_page_GX, rows.prompt_longest) for pages in (key_PnTh, value_PnTh))
    prompt_out, prompt_sum = _attend_together(
        query_Bnrh, key, value, rows.prompt_bias, rows.row_of_place, rows.place_of_row_B
    )
    # Apart from the prompt's: one softmax over joined keys would want a copy of the prompt for every member.
    key, value = (_in_order(pages, rows.new_page_SY, rows.new_longest) for pages in (key_PnTh, value_PnTh))
    if rows.slots is None:
        new_out, new_sum = _attend(query_Bnrh, key, value, rows.new_bias)
    else:
        new_out, new_sum = _attend_together(
            query_Bnrh, key, value, rows.new_bias, rows.slots.row_of_slot, rows.slots.slot_of_row_B
        )
    # A part's weight is e^log_sum over both; the sigmoid of their difference is that without an overflow.
    return torch.lerp(new_out, prompt_out, torch.sigmoid(prompt_sum - new_sum)).to(dtype)
