"""The types that the functions here take and return.

Shapes: K directions, S segments, O outputs, I inputs, r the rank.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class GradDots(NamedTuple):
    """Inner products by segment and by token, fp32 (fp64 for fp64 inputs), with a leading K for several directions."""

    scores: Tensor
    """[segments] or [K, segments]."""
    tokens: Tensor
    """[...] like segment_ids, or [K, ...]; 0 where the id is -1."""


@dataclass(frozen=True, kw_only=True)
class LowRankDirection:
    """V' = left right: 2 r (O + I) FLOPs a token instead of 2 O I."""

    left: Tensor
    """[..., O, r]"""
    right: Tensor
    """[..., r, I]"""
    relative_error: Tensor
    """[...], fp32."""


@dataclass(frozen=True, kw_only=True)
class Fp8Direction:
    """V'[o, i] = values[o, i] * scale[o]: one byte an entry. Scales are powers of two, so decoding to bf16 is exact."""

    values: Tensor
    """[..., O, I], float8_e4m3fn."""
    scale: Tensor
    """[..., O], fp32."""
    relative_error: Tensor
    """[...], fp32."""


Direction = Tensor | LowRankDirection | Fp8Direction
