"""The draw in PyTorch, which is its definition too. Shape suffixes: B rows, V vocabulary, K columns."""

import torch
from torch import Tensor


def inverse_cdf(weight_BK: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """The column whose slice of the row's cumulative weight holds the uniform, int64 [B], and the row's sum, fp64 [B].

    The sum runs in fp64: over 50,000 columns fp32 would move its borders. A column of weight 0 is never returned.
    """
    cumulative_BK = torch.cumsum(weight_BK, -1, dtype=torch.float64)
    total_B1 = cumulative_BK[:, -1:]
    # u < 1, but u * total may round up to total; stay below it so that the last positive weight is found.
    below_total_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))
    target_B1 = torch.minimum(uniform_B[:, None] * total_B1, below_total_B1)
    # right=True: the first column whose sum exceeds the target. One of weight 0 has its predecessor's sum.
    column_B = torch.searchsorted(cumulative_BK, target_B1, right=True)[:, 0]
    # A row of NaN has none: its draw is told by its log-probability, and must not read beyond the row.
    return column_B.clamp(max=weight_BK.shape[-1] - 1), total_B1[:, 0]


def draw_tokens(logits_BV: Tensor, uniform_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return (token_B, logprob_B); see `op.draw_tokens`."""
    prob_BV = torch.softmax(logits_BV / temperature, -1)
    token_B, _ = inverse_cdf(prob_BV, uniform_B)
    return token_B, torch.log(prob_BV.gather(-1, token_B[:, None])[:, 0])
