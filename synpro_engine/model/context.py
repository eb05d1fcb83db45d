"""Context parallelism: the ranks of a group have a share of every sequence each, and gather the keys of all.

A sequence is cut into 2 cp chunks of one length, of which rank r has the r-th and the r-th from the end: causal
attention is then as much work on each. Keys and values are gathered over the group and their gradients summed and
scattered, as for Llama 3 (arXiv 2407.21783, section 3.3.2), so that any kernel of attention will do and any mask. All
else works on single positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from torch import Tensor

from synpro_engine.dist.topology import Axis

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query [q, b, heads, hn], key and value [k, b, groups, hn]) -> [q, b, heads hn]; the queries are the last q of the k
positions, and each sees itself and what is before it."""


@dataclass(frozen=True)
class ContextShare:
    """What this rank has of each sequence. Of one rank it is all, and nothing here does anything."""

    axis: Axis

    def multiple(self, parts: int) -> int:
        """What a sequence's length must be a multiple of, where each share goes into so many parts of one length."""
        size = self.axis.size
        return parts if size == 1 else size * math.lcm(2, parts)

    def of(self, x: Tensor, dim: int) -> Tensor:
        """The share of a tensor over whole sequences along `dim`, in the order of positions."""
        size, rank = self.axis.size, self.axis.rank
        if size == 1:
            return x
        assert x.size(dim) % (2 * size) == 0, f"{x.size(dim)} positions do not go into {2 * size} chunks"
        chunks = x.chunk(2 * size, dim)
        return torch.cat((chunks[rank], chunks[-1 - rank]), dim)

    def places(self, count: int, device: torch.device) -> Tensor:
        """Where in the sequence a share's `count` positions are, int64 [count]."""
        return self.of(torch.arange(self.axis.size * count, device=device), 0)

    def gathered(self, x: Tensor, dim: int) -> Tensor:
        """The whole from all ranks' shares, without gradients. Collective over the group."""
        if self.axis.size == 1:
            return x
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.axis.size)]
        dist.all_gather(parts, x.contiguous(), group=self.axis.group)
        return _in_order(parts, dim)

    def whole(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [s, b, ng, hn] of whole sequences from the ranks' shares; differentiable, collective."""
        if self.axis.size == 1:
            return key, value
        # Together, for one message is quicker than two; the gradients are summed in the way back.
        both = tensor_parallel.gather_from_sequence_parallel_region(torch.cat((key, value), -1), group=self.axis.group)
        key, value = _in_order(both.chunk(self.axis.size), 0).split((key.size(-1), value.size(-1)), -1)
        return key, value

    def attended(self, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """Causal attention of the share's queries [s, b, np, hn] over whole keys and values, [s, b, np hn]."""
        size, rank = self.axis.size, self.axis.rank
        if size == 1:
            return attend(query, key, value)
        length = query.size(0) // 2
        ends = ((rank + 1) * length, (2 * size - rank) * length)
        return torch.cat([attend(q, key[:end], value[:end]) for q, end in zip(query.split(length), ends, strict=True)])


def _in_order(shares: Sequence[Tensor], dim: int) -> Tensor:
    """The sequence of which these are all ranks' shares."""
    first, second = zip(*(share.chunk(2, dim) for share in shares), strict=True)
    return torch.cat((*first, *reversed(second)), dim)
