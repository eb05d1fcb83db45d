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

    Returns out [N, n, Q, h] and log_sum [N, n, Q, 1]. For a few queries per key this beats the fused kernel on
    the CPU and, unlike it, gives the log-sum. The largest weight is 1/sum, hence its log is minus the log-sum's rest.
    """
    score = precise(query) @ precise(key).mT
    if bias is not None:
        score += bias
    weight = torch.softmax(score, -1)
    log_sum = score.amax(-1, keepdim=True) - weight.amax(-1, keepdim=True).log()
    return weight @ precise(value), log_sum


def decode_attention(
    query_Bnrh: Tensor,
    prompt_key_GnTh: Tensor,
    prompt_value_GnTh: Tensor,
    new_key_BnTh: Tensor,
    new_value_BnTh: Tensor,
    rows: DecodeRows,
) -> Tensor:
    """Softmax over prompt and new positions apart, merged by their log-sums."""
    dtype, (n, r, h) = query_Bnrh.dtype, query_Bnrh.shape[1:]
    # On the query rather than on the scores, of which there are r for each position.
    query_Bnrh = query_Bnrh * (1.0 / math.sqrt(h))
    groups = len(rows.prompt_length_G)
    # [G, n, M r, h]: the members' queries side by side are one product a group, as in Hydragen (arXiv 2402.05099).
    grouped_query = query_Bnrh.index_select(0, rows.row_of_place).unflatten(0, (groups, -1))
    grouped_query = grouped_query.transpose(1, 2).reshape(groups, n, -1, h)
    prompt_key, prompt_value = (
        part[:groups, :, : rows.prompt_longest] for part in (prompt_key_GnTh, prompt_value_GnTh)
    )
    prompt_out, prompt_sum = (
        part.unflatten(2, (-1, r)).transpose(1, 2).flatten(0, 1).index_select(0, rows.place_of_row_B)
        for part in _attend(grouped_query, prompt_key, prompt_value, rows.prompt_bias)
    )
    # Apart from the prompt's: one softmax over joined keys would want a copy of the prompt for every member.
    new_key = new_key_BnTh[: len(query_Bnrh), :, : rows.new_longest]
    new_value = new_value_BnTh[: len(query_Bnrh), :, : rows.new_longest]
    new_out, new_sum = _attend(query_Bnrh, new_key, new_value, rows.new_bias)
    # A part's weight is e^log_sum over both; the sigmoid of their difference is that without an overflow.
    return torch.lerp(new_out, prompt_out, torch.sigmoid(prompt_sum - new_sum)).to(dtype)
