"""Causal attention some of whose weights are dropped, in plain operations.

torch's and flash-attn's kernels draw masks from a generator's state, by ranks' own heads: no other layout makes the
same. Here a mask is given. Each row's weights [n, S, S] are held for a moment, and made again in the backward pass.

Shape suffixes: S positions, B rows, n query heads, g key heads, r query heads a key head, h width of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Thin = Callable[[int, Tensor], Tensor]
"""(row, its weights [n, S, S]) -> these with some dropped; a function of both alone, for it is asked twice."""


def dropped_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, thin: Thin, unseen_B1SS: Tensor | None = None
) -> Tensor:
    """query [S, B, n, h], key and value [S, B, g, h] -> [S, B, n h]. Softmax in fp32.

    unseen_B1SS: True where a row's query (third) does not see the key (fourth); without it position i sees 0..i.
    """
    scale = query.size(-1) ** -0.5 if scale is None else scale
    if unseen_B1SS is None:
        unseen_B1SS = torch.ones(2 * query.shape[:1], dtype=torch.bool, device=query.device).triu(1)
        unseen_B1SS = unseen_B1SS.expand(query.size(1), 1, -1, -1)
    rows = [
        checkpoint(_attend, *row, scale, thin, number, use_reentrant=False, preserve_rng_state=False)
        for number, row in enumerate(zip(*(x.unbind(1) for x in (query, key, value)), unseen_B1SS, strict=True))
    ]
    return torch.stack(rows, 1)


def _attend(
    query_Snh: Tensor, key_Sgh: Tensor, value_Sgh: Tensor, unseen_1SS: Tensor, scale: float, thin: Thin, row: int
) -> Tensor:
    groups = key_Sgh.size(1)
    query_grSh = query_Snh.transpose(0, 1).unflatten(0, (groups, -1))
    key_g1Sh, value_g1Sh = (x.transpose(0, 1)[:, None] for x in (key_Sgh, value_Sgh))
    scores_grSS = (query_grSh @ key_g1Sh.mT).float() * scale
    weights_grSS = scores_grSS.masked_fill(unseen_1SS, -torch.inf).softmax(-1)
    thinned_grSS = thin(row, weights_grSS.flatten(0, 1)).view_as(weights_grSS)
    out_grSh = thinned_grSS.to(value_Sgh.dtype) @ value_g1Sh
    return out_grSh.flatten(0, 1).transpose(0, 1).flatten(1)
