"""Training's examples by name: which positions of a micro-batch belong to which, and what each of them scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from synpro_engine.data import IGNORE
from synpro_engine.train.losses import LabelledBatch
from synpro_kernels import segment_sum

NO_EXAMPLE = -1
"""Of a position that belongs to none."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The examples of one micro-batch: their keys (document ids, or whatever names a sample), and where they are.

    example_BS: int64 [B, S], each position's index in `keys`, or -1 for a position of none.
    """

    keys: tuple[str, ...]
    example_BS: Tensor

    @classmethod
    def rows(cls, keys: Sequence[str], batch: LabelledBatch) -> Examples:
        """One example a row."""
        assert len(keys) == batch.labels_BS.size(0), (len(keys), tuple(batch.labels_BS.shape))
        return cls(keys=tuple(keys), example_BS=torch.arange(len(keys))[:, None].expand_as(batch.labels_BS))

    def are_rows_of(self, batch: LabelledBatch) -> bool:
        """Whether there is one example a row, in order, and every label of a row is its own."""
        rows_B1 = torch.arange(batch.labels_BS.size(0))[:, None]
        stray_BS = (batch.labels_BS.cpu() != IGNORE) & (self.example_BS.cpu() != rows_B1)
        return len(self.keys) == len(rows_B1) and not bool(stray_BS.any())

    def labels(self, batch: LabelledBatch) -> Tensor:
        """Number of labels of each example that are not ignored, int64 [examples] on the CPU."""
        owner = self.example_BS.cpu()[(batch.labels_BS.cpu() != IGNORE) & (self.example_BS.cpu() >= 0)]
        return torch.bincount(owner, minlength=len(self.keys))

    def sums(self, values_KSB: Tensor) -> Tensor:
        """Sum values of positions, sequence first and maybe padded, by example: [K, examples]."""
        # Sequence parallelism pads rows to a multiple of its ranks; such positions belong to no example.
        missing = values_KSB.size(1) - self.example_BS.size(1)
        example_BS = F.pad(self.example_BS.to(values_KSB.device), (0, missing), value=NO_EXAMPLE)
        # Without atomics, unlike index_add_ on CUDA: a watched step's scores repeat bit for bit.
        return segment_sum(values_KSB.flatten(1), example_BS.t().flatten(), segments=len(self.keys))


@dataclass(frozen=True, kw_only=True)
class ExampleScore:
    """<grad L, v> of one example along directions by name, L the mean over its labels: nats per token.

    An example without labels in this micro-batch has `tokens` = 0 and scores 0.
    """

    key: str
    tokens: int
    values: Mapping[str, float]
