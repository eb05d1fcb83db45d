"""An approximation that is off unless asked for: vocabulary columns with next to no gradient are left out.

Most of a peaked softmax is numerically nothing, and the backward products spend their time on it. What was dropped is
counted, so that nobody approximates without knowing how much.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class TileSkip:
    """Leave out of the backward products each column of a block in which no token's |dL/dlogit| reaches `below`.

    Pass one to `linear_logprob` and read `dropped_share` after backward; it sums over all backward passes that used it.
    Meant for scoring and policy gradients, where a bias of known size may be worth the time. Not for pretraining:
    rare tokens' rows would only ever be pulled, never pushed away, and `linear_cross_entropy` takes no such argument.
    """

    below: float
    _dropped: list[Tensor] = field(default_factory=list)
    _total: list[Tensor] = field(default_factory=list)
    columns: int = 0
    """Columns of blocks seen."""
    skipped: int = 0
    """Columns of blocks left out."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.below < float("inf"):
            raise ValueError(f"below: expected a finite number >= 0, got {self.below}")

    @property
    def dropped_share(self) -> float:
        """Sum of |dL/dlogit| left out, over the sum of all of them (0 where there was none)."""
        total = float(torch.stack(self._total).sum()) if self._total else 0.0
        return float(torch.stack(self._dropped).sum()) / total if total else 0.0

    def choose(self, dz_CB: Tensor) -> Tensor:
        """Columns [n] of a block that take part, and keep the account. Costs a device synchronisation."""
        size_CB = dz_CB.abs()
        # fp64: what is dropped is far below what stays, and both are summed over all blocks of all passes.
        mass_B = size_CB.sum(0, dtype=torch.float64)
        # By column: only one that is left out whole makes a GEMM shorter.
        matters_B = (size_CB >= self.below).any(0)
        # Kept on the device and added up when asked: reading each block's share would be one more wait.
        self._dropped.append((mass_B * ~matters_B).sum())
        self._total.append(mass_B.sum())
        columns_n = matters_B.nonzero().squeeze(1)
        self.columns += len(matters_B)
        self.skipped += len(matters_B) - len(columns_n)
        return columns_n
