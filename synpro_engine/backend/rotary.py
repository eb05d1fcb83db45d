"""The place that Megatron has for fused rotary positions, filled with our own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Rotate = Callable[[Tensor, Tensor, bool], Tensor]
"""Heads [s, b, n, h], what the model's rotary embedding returned, and whether neighbours are pairs -> heads."""


def use_rotary(rotate: Rotate) -> None:
    """Have models with the setting `apply_rope_fusion` turn their heads by `rotate`.

    Megatron would take Transformer Engine's, which is for GPUs and has one position for a column of all rows.
    """
    from megatron.core.models.common.embeddings import rope_utils

    rope_utils.fused_apply_rotary_pos_emb = lambda heads, given, interleaved=False: rotate(heads, given, interleaved)
