"""Rows that hold a beginning once and behind it several continuations, each of which sees it and itself alone.

A row is read as its continuations would be, each behind the beginning in a row of its own. Documents that are packed
into a row and kept apart are continuations of nothing. Shape suffixes: B rows, S
positions in a row, h width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from synpro_engine.backend.rotary import use_rotary
from synpro_engine.data import Batch
from synpro_engine.model.context import ContextShare
from synpro_kernels import rotary, rotary_tables
from synpro_kernels.common.transfer import to_device

_PADDING = -1


@dataclass(frozen=True, kw_only=True)
class SharedRows:
    """Where each token of a row stands, and in which part of it; int64 on the model's device.

    position_BS: place behind the beginning's start, as in a row of its own. part_BS: 0 in the beginning, 1, 2, ... in
    the continuations, -1 in padding. longest: positions of the longest of those rows, known to the host.
    """

    position_BS: Tensor
    part_BS: Tensor
    longest: int

    @classmethod
    def of_documents(cls, document_BS: Tensor) -> SharedRows:
        """Rows of documents end to end, each of which sees itself alone; document_BS: the one of each token's label.

        What stands in front of a document, its EOS, is so read with it, as where it stood in a row of its own. Equal
        numbers next to each other are one document.
        """
        begins_BS = F.pad(document_BS[:, 1:] != document_BS[:, :-1], (1, 0), value=True)
        index_S = torch.arange(document_BS.size(1), device=document_BS.device)
        start_BS = torch.where(begins_BS, index_S, 0).cummax(1).values
        position_BS = index_S - start_BS
        longest = int(position_BS.max()) + 1 if position_BS.numel() else 0
        return cls(position_BS=position_BS, part_BS=begins_BS.cumsum(1), longest=longest)

    def to(self, device: torch.device) -> SharedRows:
        """The same on a device."""
        return replace(self, position_BS=to_device(self.position_BS, device), part_BS=to_device(self.part_BS, device))

    def cut(self, rows: slice, columns: int) -> SharedRows:
        """Some rows, as far as so many columns."""
        return replace(self, position_BS=self.position_BS[rows, :columns], part_BS=self.part_BS[rows, :columns])

    def with_rows(self, count: int) -> SharedRows:
        """The same with rows of padding behind, up to so many."""
        below = (0, 0, 0, count - self.part_BS.size(0))
        return replace(
            self, position_BS=F.pad(self.position_BS, below), part_BS=F.pad(self.part_BS, below, value=_PADDING)
        )

    def padded(self, length: int) -> SharedRows:
        """The same with padding up to `length` positions."""
        behind = (0, length - self.part_BS.size(1))
        return replace(
            self, position_BS=F.pad(self.position_BS, behind), part_BS=F.pad(self.part_BS, behind, value=_PADDING)
        )

    def bias(self, dtype: torch.dtype, share: ContextShare | None = None) -> Tensor:
        """[B, 1, S, S] for scores of attention: -inf where a row's query (third) must not see the key (fourth), else 0.

        One for all layers of a pass: of a mask of bools torch's attention makes such a one each time, and every layer's
        would be kept for the backward pass. dtype: that of queries. share: of its queries alone, and all keys.
        """
        order_S = torch.arange(self.part_BS.size(1), device=self.part_BS.device)
        part_BQ, order_Q = (x if share is None else share.of(x, -1) for x in (self.part_BS, order_S))
        query, key = part_BQ[:, :, None], self.part_BS[:, None, :]
        # Padding sees what is before it, as in rows of one continuation: nothing reads what comes of it.
        seen = ((key == 0) | (key == query)) & (order_Q[:, None] >= order_S)
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)[:, None]


def documents_apart(batch: object, device: torch.device) -> SharedRows | None:
    """How the rows of a batch are read; None: as they are, each as one."""
    if not (isinstance(batch, Batch) and batch.apart):
        return None
    assert batch.document_BS is not None, "batches that are read apart come from a loader"
    # Made where the batch is: the longest is told to the host.
    return SharedRows.of_documents(batch.document_BS).to(device)


def check_reads_shared_rows(chunk: Any) -> None:
    """Raise RuntimeError for a chunk that would read shared rows as plain ones, without an error."""
    for layer in chunk.decoder.layers:
        attention = layer.self_attention.core_attention
        if not getattr(attention, "reads_shared_rows", False):
            raise RuntimeError(f"{type(attention).__name__} may pass over the mask of rows with several continuations")


def _rotate(heads: Tensor, tables: Tensor, interleaved: bool) -> Tensor:
    assert not interleaved, "these models pair the two halves of a head"
    return rotary(heads, tables[0], tables[1])


use_rotary(_rotate)


class RowRotary(RotaryEmbedding):
    """Megatron's rotary positions, and those of shared rows while they are read, as tables of cos and sin.

    Megatron hands what `forward` returns through every layer to what turns the heads, and never looks into it; so the
    tables are made once a pass and not by queries and keys of each layer, which would also keep theirs for the backward
    pass. Those of plain rows are kept: a shorter pass takes the beginning of a longer one's.
    """

    positions_BS: Tensor | None = None
    share: ContextShare
    _plain: Tensor | None = None

    @classmethod
    def replacing(cls, rotary: torch.nn.Module, inverse_frequency: Tensor, share: ContextShare) -> RowRotary:
        """One with these angles per position, fp32 [h/2], in the place of Megatron's own `rotary`.

        share: which positions of plain rows its rank has.
        """
        assert type(rotary) is RotaryEmbedding, "its other kinds of positions are not asked for"
        # Its own angles are thrown away; made on the CPU, for it would take whichever GPU is the current one.
        found = cls(2 * len(inverse_frequency), 1.0, use_cpu_initialization=True)
        found.inv_freq, found.cp_group, found.share = inverse_frequency, rotary.cp_group, share
        return found

    def forward(  # pyright: ignore[reportIncompatibleVariableOverride] - Megatron wraps its own in a cache
        self, max_seq_len: int, offset: int = 0, packed_seq: bool = False, cp_group: Any = None
    ) -> Tensor:
        """[2, S, 1, h], or [2, S, B, h] where each row has positions of its own; fp32, of this rank's positions."""
        assert not offset and not packed_seq, "rows begin at position 0, and documents in them are `SharedRows`"
        if self.positions_BS is not None:
            return self._tables(self.positions_BS.t())
        if self._plain is None or self._plain.size(1) < max_seq_len or self._plain.device != self.inv_freq.device:
            self._plain = self._tables(torch.arange(max_seq_len, device=self.inv_freq.device)[:, None])
        return self.share.of(self._plain[:, :max_seq_len], 1)

    def _tables(self, positions_SB: Tensor) -> Tensor:
        # fp32 whatever the model's type: bf16 tells positions apart up to 256 only.
        return rotary_tables(positions_SB[..., None].to(self.inv_freq.dtype) * self.inv_freq)

    @contextmanager
    def at(self, positions_BS: Tensor) -> Iterator[None]:
        """While a chunk reads rows, of which this rank has these positions."""
        self.positions_BS = positions_BS
        try:
            yield
        finally:
            self.positions_BS = None
