"""Caches the logits of some tokens from their forward until their gradient is known, and uses them up there.

The rematerialising path multiplies hidden by weight twice; where a token's gradient is known as soon as its log-prob
is, as in a training step, this one does it once. Shapes as in `blocks`.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from synpro_kernels.common.arithmetic import add_product, product
from synpro_kernels.common.pieces import pieces
from synpro_kernels.ops.linear_logprob.along import TokenShares
from synpro_kernels.ops.linear_logprob.blocks import products
from synpro_kernels.ops.linear_logprob.types import Gradients, Shard, Stats


class CachedLogits:
    """The logits of a shard's tokens, in blocks of `width` columns, in a buffer of tokens * V entries."""

    def __init__(self, shard: Shard, width: int, buffer: Tensor) -> None:
        self._shard = replace(shard, hidden_TH=shard.operand(shard.hidden_TH))
        self._width, self._buffer = width, buffer
        self.stats = Stats.empty(shard.tokens, shard.hidden_TH, shard.precise)
        for v, block_CB in self._blocks():
            products(self._shard, *shard.columns(v), block_CB)
            shard.kernels.merge_(block_CB, self.stats, shard.column_T, v.start, shard.settings)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks lie one after another, so each is contiguous; columns of one [C, V] matrix would be strided."""
        tokens = self._shard.tokens
        for v in pieces(self._shard.vocab if tokens else 0, self._width):
            yield v, self._buffer[v.start * tokens : v.stop * tokens].view(tokens, v.stop - v.start)

    def add_gradients(
        self,
        coefficients_C5: Tensor,
        into: Gradients,
        shares: TokenShares | None = None,
        *,
        sparse: bool = False,
        first: bool,
    ) -> None:
        """Add these tokens' gradients to `into` (fp32 sums); hidden's are rows [C, H] and are written.

        So are the tokens' shares, where they are asked for, and all of `into.weight` by the `first` tokens. Tokens
        whose gradients are all zero take no part in the products where they may be many (`sparse`). The logits are gone
        afterwards.
        """
        live: Tensor | None = None
        if sparse:
            # A policy gradient loses its clipped tokens and those of zero advantage: two of the three products get
            # shorter. Columns 0 and 1 are the softmax's; the others are 0 where no gradient flows. NaN != 0: it stays.
            live = (coefficients_C5[:, 2:] != 0).any(1).nonzero().squeeze(1)
            if len(live) == 0:
                # Alike on all ranks of a group, which hold the same coefficients.
                if first and into.weight is not None:
                    into.weight.zero_()
                return
            live = None if len(live) == self._shard.tokens else live
        part = self._shard if live is None else self._shard.rows(live)
        live_n5 = coefficients_C5 if live is None else coefficients_C5[live]
        # Rows of [n, H] on the side: an indexed view cannot be added to in place by a product.
        grad_hidden = (
            into.hidden if live is None or into.hidden is None else into.hidden.new_zeros(part.hidden_TH.shape)
        )
        for v, block_CB in self._blocks():
            weight_BH, _ = self._shard.columns(v)
            # A copy of the live rows: the kernels turn one contiguous block into gradients, in place.
            live_nB = block_CB if live is None else block_CB.index_select(0, live)
            dz_nB = part.kernels.differentiate(
                live_nB, live_n5, part.column_T, v.start, part.settings, part.hidden_TH.dtype
            )
            if grad_hidden is not None:
                add_product(dz_nB, weight_BH, grad_hidden)
            if into.weight is not None:
                (product if first else add_product)(dz_nB.t(), part.hidden_TH, into.weight[v])
            if shares is not None:
                shares.add(slice(None) if live is None else live, part.hidden_TH, v, dz_nB)
            if into.bias is not None:
                into.bias[v] += dz_nB.sum(0, dtype=into.bias.dtype)
        if into.hidden is not None and grad_hidden is not None and live is not None:
            into.hidden.index_copy_(0, live, grad_hidden)
