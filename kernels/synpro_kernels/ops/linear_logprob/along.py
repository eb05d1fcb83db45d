"""By how much a loss rises as the output layer's weight moves along given directions, read off its gradient.

dL/dweight = sum_t dL/dlogits_t h_t^T, so <dL/dweight, V_k> is a sum of the tokens' shares dL/dlogits_t . (V_k h_t).
Shapes: K directions, T tokens, C of a chunk; V rows of the weight, B of a block; H width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise_dtype
from synpro_kernels.ops.grad_dot import grad_dot


@dataclass(frozen=True, kw_only=True)
class Along:
    """The directions, and whether each token's share is wanted or (for a product less) their sum alone."""

    direction_KVH: Tensor
    per_token: bool


@dataclass(frozen=True)
class TokenShares:
    """Each token's share dL/dlogits_t . (V_k h_t), as far as its logits have been walked: a sum over their blocks."""

    direction_KVH: Tensor
    values_KC: Tensor

    @classmethod
    def wanted(cls, along: Along | None, hidden_TH: Tensor) -> "TokenShares | None":
        """Zeros for these tokens, or None where no shares are asked for."""
        if along is None or not along.per_token:
            return None
        shape, dtype = (len(along.direction_KVH), len(hidden_TH)), precise_dtype(hidden_TH.dtype)
        return cls(along.direction_KVH, hidden_TH.new_zeros(shape, dtype=dtype))

    def of(self, tokens: slice) -> "TokenShares":
        """A view of some of the tokens: what is added to it is added here."""
        return replace(self, values_KC=self.values_KC[:, tokens])

    def add(self, tokens: slice | Tensor, hidden_CH: Tensor, columns: slice, dz_CB: Tensor) -> None:
        """Add to some tokens' shares what a block of the weight's rows has in them; dz: their logits' gradient."""
        # Cast block by block: a whole bf16 copy of an fp32 direction would be 2 V H bytes for each.
        direction_KBH = self.direction_KVH[:, columns].to(hidden_CH.dtype)
        # The sum over the one segment is not used: the tokens' dots come with it.
        segment_C = torch.zeros(len(hidden_CH), dtype=torch.int32, device=hidden_CH.device)
        block = grad_dot(hidden_CH, dz_CB, direction_KBH, segment_C, segments=1, per_token=True)
        self.values_KC[:, tokens] += block.tokens
