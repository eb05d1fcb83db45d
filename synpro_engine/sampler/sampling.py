"""Drawing one token per row from logits, with the exact log-probability of the draw.

Each row's random number is a pure function of (seed, member, position), so a draw does not depend on what else is in
the batch or on the layout.

Shape suffixes: B rows (sequences), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from synpro_engine.config import UserError
from synpro_engine.sampler.config import SamplingConfig
from synpro_kernels import draw_tokens, inverse_cdf

_FIRST_TOP = 64  # candidates looked at first when cutting; a peaked distribution needs no more


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One token per row: token_B int64, logprob_B and full_logprob_B fp32 (see `Completion`).

    When the distribution was cut, `nucleus_ids` [n] int64 lists the ids of each row's nucleus (ascending), row after
    row, and `nucleus_counts_B` int64 says how many belong to each row; otherwise both are None.
    """

    token_B: Tensor
    logprob_B: Tensor
    full_logprob_B: Tensor
    nucleus_counts_B: Tensor | None = None
    nucleus_ids: Tensor | None = None


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014) on uint64; arithmetic is modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seeds: Sequence[int], members: Sequence[int], positions: Sequence[int]) -> Tensor:
    """Random numbers in [0, 1), fp64 [B] on the CPU: a hash of (seed, member, position), 53 bits each."""
    gamma = np.uint64(0x9E3779B97F4A7C15)
    state = np.zeros(len(seeds), dtype=np.uint64)
    for part in (seeds, members, positions):
        # Python's integers have no end and may be negative, which uint64 refuses.
        word = np.array([value & 0xFFFFFFFFFFFFFFFF for value in part], dtype=np.uint64)
        # Mixed between the parts, or (seed, member) and (member, seed) would be one stream.
        state = _mix((state ^ word) + gamma)
    # 53 bits are what a double's mantissa holds: every value is exact, and below 1.
    return torch.from_numpy((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)


@dataclass(frozen=True, kw_only=True)
class Nucleus:
    """The ids of each row that are drawn from: its most likely ones, as far as top-p, top-k and min-p say.

    counts_B int64: how many; ids [n] int64, ascending within a row, row after row;
    prob_BK [B, max count] fp32 holds their probabilities under the uncut distribution, 0 where a row has fewer.
    """

    counts_B: Tensor
    ids: Tensor
    prob_BK: Tensor


def nucleus(prob_BV: Tensor, top_p: float = 1.0, top_k: int | None = None, min_p: float = 0.0) -> Nucleus:
    """The `top_k` most likely ids, of these the fewest whose probabilities reach `top_p` (Holtzman et al. 2020) of
    theirs, and of these the ones at least `min_p` times as likely as the first.

    Ids exactly as likely as the last of them belong to it too, so that it does not depend on a sort's order
    among ties (frequent in bf16).
    """
    # Every cut keeps what is likely enough, so the strictest threshold is that of all of them.
    thresholds, wanted_B = [], torch.full_like(prob_BV[:, 0], top_p, dtype=torch.float64)
    if min_p > 0.0:
        thresholds.append(min_p * prob_BV.amax(-1))
    if top_k is not None and top_k < prob_BV.shape[-1]:
        thresholds.append(prob_BV.topk(top_k, dim=-1).values[:, -1])
        wanted_B *= prob_BV.double().masked_fill(prob_BV < thresholds[-1][:, None], 0.0).sum(-1)
    if top_p < 1.0:
        thresholds.append(_smallest_in_nucleus(prob_BV, wanted_B, _FIRST_TOP))
    keep_BV = torch.ones_like(prob_BV, dtype=torch.bool)
    for least_B in thresholds:
        keep_BV &= prob_BV >= least_B[:, None]
    row_n, ids_n = keep_BV.nonzero(as_tuple=True)
    counts_B = torch.bincount(row_n, minlength=len(prob_BV))
    start_B = torch.cumsum(counts_B, 0) - counts_B
    column_n = torch.arange(len(row_n), device=row_n.device) - start_B[row_n]
    # As wide as the widest nucleus; the zeros behind shorter ones are columns of weight 0, which are never drawn.
    nucleus_BK = prob_BV.new_zeros(len(prob_BV), int(counts_B.max()))
    nucleus_BK[row_n, column_n] = prob_BV[row_n, ids_n]
    return Nucleus(counts_B=counts_B, ids=ids_n, prob_BK=nucleus_BK)


def _smallest_in_nucleus(prob_BV: Tensor, wanted_B: Tensor, top: int) -> Tensor:
    """The probability of the id at which the descending cumulative sum first reaches `wanted_B` (fp64); [B].

    Only the `top` largest are sorted; rows in which they do not reach it are done again with 8 times as many.
    """
    top = min(top, prob_BV.shape[-1])
    largest_BK = prob_BV.topk(top, dim=-1).values
    # The number of sums short of it is the index of the one that reaches it.
    # fp64, as in the draw: a border moved by rounding would put other ids into the nucleus.
    index_B = (torch.cumsum(largest_BK, -1, dtype=torch.float64) < wanted_B[:, None]).sum(-1)
    # Clamped: rounding may leave the whole vocabulary's sum short of it, and then every id belongs.
    smallest_B = largest_BK.gather(-1, index_B.clamp(max=top - 1)[:, None])[:, 0]
    if top < prob_BV.shape[-1]:
        short = (index_B == top).nonzero()[:, 0]
        if len(short):
            smallest_B[short] = _smallest_in_nucleus(prob_BV[short], wanted_B[short], top * 8)
    return smallest_B


def bias_vector(biases: Mapping[int, float], vocab: int, dtype: torch.dtype) -> Tensor | None:
    """What is added to the logits, fp32 [V], each rounded to the model's dtype as the trainer's is; None without any.

    UserError for an id that the vocabulary has not.
    """
    if not biases:
        return None
    if max(biases) >= vocab:
        raise UserError(f"`sampling.logit_bias`: there is no token {max(biases)}; the vocabulary has {vocab}")
    found = torch.zeros(vocab, dtype=dtype)
    found[list(biases)] = torch.tensor(list(biases.values()), dtype=dtype)
    return found.float()


def draw(
    logits_BV: Tensor, sampling: SamplingConfig, uniform_B: Tensor, vocab_limit: int | None = None,
    bias_V: Tensor | None = None,
) -> Draw:  # fmt: skip
    """Draw one id per row of `logits_BV` (any float dtype, untempered); `uniform_B` fp64 in [0, 1).

    Ids at or above `vocab_limit` (padding of the vocabulary) have no probability anywhere. `bias_V` is added first.
    """
    # Ahead of the softmax: rows of padding are untrained, and would take probability from the others.
    logits_BV = logits_BV[:, :vocab_limit].float()
    if bias_V is not None:
        logits_BV = logits_BV + bias_V[:vocab_limit]
    if sampling.temperature > 0.0 and not sampling.cuts:
        token_B, full_B = draw_tokens(logits_BV, uniform_B, sampling.temperature)
        return Draw(token_B=token_B, logprob_B=full_B, full_logprob_B=full_B)
    prob_BV = torch.softmax(logits_BV / (sampling.temperature or 1.0), -1)
    if sampling.temperature == 0.0:
        # Of the logits: close ones round to equal probabilities.
        token_B = logits_BV.argmax(-1)
        full_B = torch.log(prob_BV.gather(-1, token_B[:, None])[:, 0])
        return Draw(token_B=token_B, logprob_B=torch.zeros_like(full_B), full_logprob_B=full_B)
    cut = nucleus(prob_BV, sampling.top_p, sampling.top_k, sampling.min_p)
    column_B = inverse_cdf(cut.prob_BK, uniform_B)
    full_B = torch.log(cut.prob_BK.gather(-1, column_B[:, None])[:, 0])
    start_B = torch.cumsum(cut.counts_B, 0) - cut.counts_B
    return Draw(
        token_B=cut.ids[start_B + column_B],
        # Over the sum that was drawn from: the trainer's ratio is to this very distribution.
        logprob_B=full_B - torch.log(cut.prob_BK.sum(-1)),
        full_logprob_B=full_B,
        nucleus_counts_B=cut.counts_B,
        nucleus_ids=cut.ids,
    )
