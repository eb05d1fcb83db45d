"""Drawing one token per row from logits, with the exact log-probability of the draw.

Each row's random number is a pure function of (seed, member, position), so a draw does not depend on what else is in
the batch or on the layout.

Shape suffixes: B rows (sequences), V vocabulary, K likeliest ids.
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

NO_ID = 2**31 - 1
"""No token's id."""
_FIRST_TOP = 64
"""Ids that are looked at first when cutting: a peaked distribution needs no more."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The ids of each row that are drawn from: its most likely ones, as far as top-p, top-k and min-p say.

    id_BK int32: ascending, with `NO_ID` in places that are empty. short_B bool: there may be others than were looked
    at, and what the row has here is no nucleus.
    """

    id_BK: Tensor
    short_B: Tensor


@dataclass(frozen=True, kw_only=True)
class Nucleus(Kept):
    """prob_BK fp32: with the ids' probabilities under the uncut distribution, 0 in empty places."""

    prob_BK: Tensor


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One token per row: token_B int64, logprob_B and full_logprob_B fp32 (see `Completion`).

    finite_B bool: whether the row's logits are; else there is nothing to draw from. `nucleus`: None where nothing was
    cut; a row that it is `short` for was drawn wrongly.
    """

    token_B: Tensor
    logprob_B: Tensor
    full_logprob_B: Tensor
    finite_B: Tensor
    nucleus: Kept | None = None


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


def nucleus(
    prob_BV: Tensor, top_p: float = 1.0, top_k: int | None = None, min_p: float = 0.0, *, width: int
) -> Nucleus:
    """The `top_k` most likely ids, of these the fewest whose probabilities reach `top_p` (Holtzman et al. 2020) of
    theirs, and of these the ones at least `min_p` times as likely as the first.

    Ids exactly as likely as the last of them belong to it too, so that it does not depend on a sort's order
    among ties (frequent in bf16). Looked for among the `width` likeliest of a row, or where that is no less among the
    whole vocabulary, so that no shape depends on what is found; `width` is above `top_k`.
    """
    vocab = prob_BV.shape[-1]
    whole = width >= vocab
    # Without sums to be reached it is the border of top-k that is sorted out, and no more.
    looked_at = min(width, vocab) if top_p < 1.0 or not whole else min(top_k or 1, vocab)
    largest_BK, id_BK = prob_BV.topk(looked_at, dim=-1)
    least_B1 = _least_kept(largest_BK, top_p, top_k if top_k is not None and top_k < vocab else None, min_p)[:, None]
    if whole:
        out_BV = prob_BV < least_B1
        id_V = torch.arange(vocab, dtype=torch.int32, device=prob_BV.device)
        return Nucleus(
            id_BK=id_V.expand_as(out_BV).masked_fill(out_BV, NO_ID),
            prob_BK=prob_BV.masked_fill(out_BV, 0.0),
            short_B=torch.zeros_like(out_BV[:, 0]),
        )
    out_BK = largest_BK < least_B1
    id_BK, order_BK = id_BK.int().masked_fill(out_BK, NO_ID).sort(-1)
    prob_BK = largest_BK.masked_fill(out_BK, 0.0).gather(-1, order_BK)
    # Where the last one looked at is kept, others may be as likely.
    return Nucleus(id_BK=id_BK, prob_BK=prob_BK, short_B=~out_BK[:, -1])


def _least_kept(largest_BK: Tensor, top_p: float, top_k: int | None, min_p: float) -> Tensor:
    """The probability [B] that an id of a nucleus has at least, of the largest ones in descending order."""
    # Every cut keeps what is likely enough, so the strictest threshold is that of all of them.
    least_B, wanted_B = min_p * largest_BK[:, 0], torch.full_like(largest_BK[:, 0], top_p, dtype=torch.float64)
    if top_k is not None:
        least_B = torch.maximum(least_B, largest_BK[:, top_k - 1])
        kept_BK = largest_BK.masked_fill(largest_BK < largest_BK[:, top_k - 1, None], 0.0)
        wanted_B *= kept_BK.sum(-1, dtype=torch.float64)
    if top_p < 1.0:
        # The number of sums short of it is the index of the one that reaches it.
        # fp64, as in the draw: a border moved by rounding would put other ids into the nucleus.
        index_B = (torch.cumsum(largest_BK, -1, dtype=torch.float64) < wanted_B[:, None]).sum(-1)
        # Clamped: rounding may leave the whole vocabulary's sum short of it, and then every id belongs.
        last_B1 = largest_BK.gather(-1, index_B.clamp(max=largest_BK.shape[-1] - 1)[:, None])
        least_B = torch.maximum(least_B, last_B1[:, 0])
    return least_B


def least_width(sampling: SamplingConfig) -> int:
    """How many ids a row's nucleus is looked for among at first."""
    return max(_FIRST_TOP, (sampling.top_k or 0) + 1)


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
    bias_V: Tensor | None = None, *, width: int,
) -> Draw:  # fmt: skip
    """Draw one id per row of `logits_BV` (any float dtype, untempered); `uniform_B` fp64 in [0, 1).

    Ids at or above `vocab_limit` (padding of the vocabulary) have no probability anywhere. `bias_V` is added first.
    `width` is that of `nucleus`. Nothing here waits for the device.
    """
    # A sum that writes nothing: what is not finite leaves none that is.
    finite_B = logits_BV.sum(-1, dtype=torch.float32).isfinite()
    # Ahead of the softmax: rows of padding are untrained, and would take probability from the others.
    logits_BV = logits_BV[:, :vocab_limit].float()
    if bias_V is not None:
        logits_BV = logits_BV + bias_V[:vocab_limit]
    if sampling.temperature > 0.0 and not sampling.cuts:
        token_B, full_B = draw_tokens(logits_BV, uniform_B, sampling.temperature)
        return Draw(token_B=token_B, logprob_B=full_B, full_logprob_B=full_B, finite_B=finite_B)
    prob_BV = torch.softmax(logits_BV / (sampling.temperature or 1.0), -1)
    if sampling.temperature == 0.0:
        # Of the logits: close ones round to equal probabilities.
        token_B = logits_BV.argmax(-1)
        full_B = torch.log(prob_BV.gather(-1, token_B[:, None])[:, 0])
        return Draw(token_B=token_B, logprob_B=torch.zeros_like(full_B), full_logprob_B=full_B, finite_B=finite_B)
    cut = nucleus(prob_BV, sampling.top_p, sampling.top_k, sampling.min_p, width=width)
    column_B, total_B = inverse_cdf(cut.prob_BK, uniform_B)
    full_B = torch.log(cut.prob_BK.gather(-1, column_B[:, None])[:, 0])
    return Draw(
        # A row that is not finite may have none; there is something to be fed all the same.
        token_B=cut.id_BK.gather(-1, column_B[:, None])[:, 0].clamp(max=prob_BV.shape[-1] - 1).long(),
        # Over the sum that was drawn from: the trainer's ratio is to this very distribution. It runs in the order of
        # ids, so that empty places change no bit of it.
        logprob_B=full_B - torch.log(total_B).float(),
        full_logprob_B=full_B,
        finite_B=finite_B,
        nucleus=cut,
    )
