"""A batch of token windows, as training and evaluation hand it to a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from synpro_engine.config import UserError


@dataclass(frozen=True)
class Batch:
    """tokens_BS int64 [B, S]; labels_BS int64 [B, S], the next token at each position, IGNORE where none counts."""

    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    document_BS: torch.Tensor | None = None
    """The document that each label is from, ignored or not: its number, int64 [B, S], as `TokenLoader.document_id`
    takes it, or within a corpus that is evaluated; -1 behind its end. None in batches of other making."""
    apart: bool = False
    """Whether its documents must not see each other; the EOS in front of one is then read with it."""

    def rows(self, start: int, stop: int) -> Batch:
        """Its rows from `start` to before `stop`, as views."""
        documents = None if self.document_BS is None else self.document_BS[start:stop]
        return Batch(self.tokens_BS[start:stop], self.labels_BS[start:stop], documents, self.apart)

    def split(self, micro_batch: int, *, equal: bool) -> list[Batch]:
        """Micro-batches of its rows, of which the last may be smaller, for losses are sums.

        A pipeline fixes the shape that its stages receive: it needs them `equal`. UserError where they cannot be.
        """
        rows = self.tokens_BS.size(0)
        size = min(micro_batch, rows)
        if equal and rows % size:
            raise UserError(
                f"setting `micro_batch`: {size} does not divide the {rows} sequences of a rank in a pipeline"
            )
        return [self.rows(start, start + size) for start in range(0, rows, size)]
