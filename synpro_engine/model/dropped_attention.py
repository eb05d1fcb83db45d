"""Causal attention some of whose weights are dropped, in plain operations.

torch's and flash-attn's kernels draw masks from a generator's state, by ranks' own heads: no other layout makes the
same. Here a mask is given. Each row's weights [n, Q, S] are held for a moment, and made again in the backward pass.

Shape suffixes: S positions, Q those of this rank's queries, B rows, n query heads, g key heads, r query heads a key
head, h width of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Thin = Callable[[int, Tensor], Tensor]
"""(row, its weights [n, Q, S]) -> these with some dropped; a function of both alone, for it is asked twice."""


def dropped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_Q: Tensor,
    scale: float | None,
    thin: Thin,
    bias_B1QS: Tensor | None = None,
) -> Tensor:
    """query [Q, B, n, h], key and value [S, B, g, h] -> [Q, B, n h]. Softmax in fp32.

    position_Q: of the queries. bias_B1QS: -inf where a row's query (third) does not see the key (fourth), else 0;
    without it position i sees 0..i.
    """
    scale = query.size(-1) ** -0.5 if scale is None else scale
    if bias_B1QS is None:
        unseen_QS = torch.arange(key.size(0), device=key.device) > position_Q[:, None]
        bias_QS = torch.zeros(unseen_QS.shape, dtype=query.dtype, device=key.device).masked_fill_(unseen_QS, -torch.inf)
        bias_B1QS = bias_QS.expand(query.size(1), 1, -1, -1)
    rows = [
        checkpoint(_attend, *row, scale, thin, number, use_reentrant=False, preserve_rng_state=False)
        for number, row in enumerate(zip(*(x.unbind(1) for x in (query, key, value)), bias_B1QS, strict=True))
    ]
    return torch.stack(rows, 1)


def _attend(
    query_Qnh: Tensor, key_Sgh: Tensor, value_Sgh: Tensor, bias_1QS: Tensor, scale: float, thin: Thin, row: int
) -> Tensor:
    groups = key_Sgh.size(1)
    query_grQh = query_Qnh.transpose(0, 1).unflatten(0, (groups, -1))
    key_g1Sh, value_g1Sh = (x.transpose(0, 1)[:, None] for x in (key_Sgh, value_Sgh))
    scores_grQS = (query_grQh @ key_g1Sh.mT).float() * scale
    weights_grQS = (scores_grQS + bias_1QS).softmax(-1)
    thinned_grQS = thin(row, weights_grQS.flatten(0, 1)).view_as(weights_grQS)
    out_grQh = thinned_grQS.to(value_Sgh.dtype) @ value_g1Sh
    return out_grQh.flatten(0, 1).transpose(0, 1).flatten(1)
