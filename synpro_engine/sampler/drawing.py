"""Drawing for a request, a step at a time or for many steps before the host looks at any of them.

The host waits for the device once for each `bring_over`, whatever it brings. What the first tensor-parallel rank drew
counts for all of them.

Shape suffixes: B rows of a draw, N rows of several, one draw's behind another's, V vocabulary, K likeliest ids.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from synpro_engine.dist import Axis
from synpro_engine.sampler.cache import PagePool
from synpro_engine.sampler.config import SamplingConfig
from synpro_engine.sampler.decode import Decoder
from synpro_engine.sampler.layout import Stride
from synpro_engine.sampler.sampling import NO_ID, Draw, draw, least_width

_WIDER = 8
"""Times as many ids are looked at where those of a nucleus may be more."""
_MOST_IDS = 2**15
"""Of a row and all the draws that are brought over together: more would take memory that training has none to spare."""
LONGEST_STRIDE = 16
"""Steps of a stride on CUDA, where its length is left open."""
_WAIT = 1 / 8
"""What a wait takes of a decoding step's time on CUDA, roughly: small, and gone for good with a few tokens at once."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Draws on the host: `Draw`'s values of each row, and whether it is to be drawn again (`Kept.short_B`).

    token_N int64; logprob_N, full_logprob_N fp64; finite_N and short_N bool. nuclei: each row's ids, int32; None where
    nothing was cut.
    """

    token_N: np.ndarray
    logprob_N: np.ndarray
    full_logprob_N: np.ndarray
    finite_N: np.ndarray
    short_N: np.ndarray
    nuclei: list[np.ndarray] | None

    def replace(self, rows: np.ndarray, other: Drawn) -> None:
        """Put the rows of another in the place of these."""
        for name in ("token_N", "logprob_N", "full_logprob_N", "finite_N", "short_N"):
            getattr(self, name)[rows] = getattr(other, name)
        if self.nuclei is not None and other.nuclei is not None:
            for row, ids in zip(rows.tolist(), other.nuclei, strict=True):
                self.nuclei[row] = ids


def bring_over(draws: Sequence[Draw], tp: Axis) -> Drawn:
    """The first tensor-parallel rank's draws, all alike in shape: one broadcast, and one copy that the host waits for.

    The ranks hold equal logits, but a CUDA cumulative sum may differ in its last bit from run to run: ranks that drew
    by themselves could part in a token, and wait for each other for ever, or in the nucleus, and train apart.
    """
    fields = [[getattr(its, name) for its in draws] for name in ("token_B", "logprob_B", "full_logprob_B", "finite_B")]
    cuts = [its.nucleus for its in draws if its.nucleus is not None]
    if cuts:
        fields.append([cut.short_B for cut in cuts])
    # fp64 holds ids exactly beside log-probabilities.
    numbers = torch.cat([torch.cat(its).double() for its in fields])
    flat = torch.cat([numbers.view(torch.uint8), *(cut.id_BK.flatten().view(torch.uint8) for cut in cuts)])
    if tp.size > 1:
        dist.broadcast(flat, group=tp.group, group_src=0)
    found = flat.cpu().numpy()
    token, logprob, full, finite, *short = found[: 8 * len(numbers)].view(np.float64).reshape(len(fields), -1)
    nuclei = None
    if cuts:
        ids = found[8 * len(numbers) :].view(np.int32).reshape(len(token), -1)
        nuclei = [row[row != NO_ID] for row in ids]
    return Drawn(
        token_N=token.astype(np.int64), logprob_N=logprob, full_logprob_N=full, finite_N=finite > 0,
        short_N=short[0] > 0 if short else np.zeros(len(token), dtype=bool), nuclei=nuclei,
    )  # fmt: skip


class Drawer:
    """Draws as one request says. How many ids it looks for a nucleus among goes with what it found."""

    def __init__(self, sampling: SamplingConfig, vocab_limit: int | None, bias_V: Tensor | None, tp: Axis) -> None:
        self._sampling, self._vocab_limit, self._bias_V, self._tp = sampling, vocab_limit, bias_V, tp
        self._width = self._usual = least_width(sampling)

    @property
    def way(self) -> Hashable:
        """All that a draw depends on beside logits, random numbers and width: equal for drawers that draw alike."""
        sampling = self._sampling
        biases = tuple(sorted(sampling.biases.items()))
        return sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, biases, self._vocab_limit

    @property
    def cuts(self) -> bool:
        """Whether draws have nuclei."""
        return self._sampling.cuts and self._sampling.temperature > 0.0

    def vocabulary(self, whole: int) -> int:
        """How many of so many ids may be drawn."""
        return whole if self._vocab_limit is None else min(whole, self._vocab_limit)

    @property
    def width(self) -> int:
        """How many ids a stride's nuclei are looked for among."""
        return self._width

    @property
    def most_steps(self) -> int:
        """How many draws may be brought over together."""
        return max(1, _MOST_IDS // self._width)

    def take(self, stride: Stride, uniform_NB: Tensor, decoder: Decoder, pool: PagePool) -> Drawn:
        """Take the steps of a stride, each fed what the last one drew. The host waits once, behind all of them.

        Rows that are short in one of several steps are as they were before it.
        """
        if len(stride.steps) == 1:
            return self.at_once(decoder.step(stride.token_B, stride.steps[0], pool), uniform_NB[0])
        return self.bring(self.queue(stride, uniform_NB, decoder, pool))

    def bring(self, draws: Sequence[Draw]) -> Drawn:
        """Draws of a stride on the host, which waits for them."""
        drawn = bring_over(draws, self._tp)
        self._look_back(drawn)
        return drawn

    def queue(self, stride: Stride, uniform_NB: Tensor, decoder: Decoder, pool: PagePool) -> list[Draw]:
        """A stride's draws on the device; nothing is waited for."""
        token_B, draws = stride.token_B, list[Draw]()
        for step, uniform_B in zip(stride.steps, uniform_NB, strict=True):
            draws.append(self.next(decoder.step(token_B, step, pool), uniform_B, self._width))
            token_B = draws[-1].token_B
        return draws

    def next(self, logits_BV: Tensor, uniform_B: Tensor, width: int) -> Draw:
        """One draw on the device, whose tokens are the first tensor-parallel rank's."""
        drawn = self._among(logits_BV, uniform_B, width)
        if self._tp.size > 1:  # as in `bring_over`
            dist.broadcast(drawn.token_B, group=self._tp.group, group_src=0)
        return drawn

    def at_once(self, logits_BV: Tensor, uniform_B: Tensor) -> Drawn:
        """One draw on the host, where no row is short."""
        width = self._usual
        drawn = bring_over([self._among(logits_BV, uniform_B, width)], self._tp)
        while len(short := drawn.short_N.nonzero()[0]):
            width *= _WIDER
            rows = torch.from_numpy(short).to(logits_BV.device)
            drawn.replace(short, bring_over([self._among(logits_BV[rows], uniform_B[rows], width)], self._tp))
        self._look_back(drawn)
        return drawn

    def _among(self, logits_BV: Tensor, uniform_B: Tensor, width: int) -> Draw:
        return draw(logits_BV, self._sampling, uniform_B, self._vocab_limit, self._bias_V, width=width)

    def _look_back(self, drawn: Drawn) -> None:
        """Go by the nuclei that were found how many ids to look for the next ones among."""
        if drawn.nuclei is not None:
            counts = sorted(map(len, drawn.nuclei))
            # In a stride a short row stands still: twice as many as the largest had, which was all if it was short.
            self._usual, self._width = self._room_for(counts[len(counts) // 2]), self._room_for(2 * counts[-1])

    def _room_for(self, ids: int) -> int:
        width = least_width(self._sampling)
        while width <= ids:
            width *= _WIDER
        return width


def worth(drawn: int, ended: int, most: int) -> int:
    """How many steps to take before the host looks, on CUDA, where steps are queued: 1 to 16.

    A completion that ends is noticed (N - 1) / 2 steps late on average, and each of its L tokens takes 1 / N of a wait:
    together least for N = sqrt(2 W L). L is what it was so far: tokens drawn by completions ended, to begin with one of
    the most tokens that one may have.
    """
    length = (drawn + most) / (ended + 1)
    return max(1, min(LONGEST_STRIDE, math.isqrt(int(2 * _WAIT * length))))
