"""Walks a layer in blocks of [tokens, vocabulary], so that no more than a few blocks of logits exist at a time.

Knows one vocabulary shard and no process group. Shapes: T tokens, H width, V columns of the shard; C tokens and B
columns of a block.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import add_product, operand, precise_dtype, product
from synpro_kernels.common.pieces import block_bytes, pieces
from synpro_kernels.ops.linear_logprob.dispatch import Implementation
from synpro_kernels.ops.linear_logprob.rows import Stats, differentiate, merge_
from synpro_kernels.ops.linear_logprob.settings import LogitSettings
from synpro_kernels.ops.linear_logprob.skip import TileSkip


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The output layer as one rank sees it: kept tokens [T] against this rank's rows of the vocabulary [V]."""

    hidden_TH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    column_T: Tensor
    """int64: the target's column in this shard; outside [0, V) where another shard holds it."""
    settings: LogitSettings
    how: Implementation

    @property
    def tokens(self) -> int:
        """Number of tokens T."""
        return self.hidden_TH.shape[0]

    @property
    def vocab(self) -> int:
        """Number of columns V."""
        return self.weight_VH.shape[0]

    @property
    def precise(self) -> torch.dtype:
        """Dtype of logits, statistics and sums."""
        return precise_dtype(self.hidden_TH.dtype)

    def rows(self, chosen: slice | Tensor) -> "Shard":
        """Return the shard with some of the tokens only."""
        return replace(self, hidden_TH=self.hidden_TH[chosen], column_T=self.column_T[chosen])

    def columns(self, chosen: slice) -> tuple[Tensor, Tensor | None]:
        """Weight [B, H] and bias [B] of some columns, as the products want them."""
        bias = self.bias_V
        return self.operand(self.weight_VH[chosen]), None if bias is None else self.operand(bias[chosen])

    def operand(self, tensor: Tensor) -> Tensor:
        """What the products multiply; Triton's kernels, interpreted on a CPU, take halves as they are."""
        return tensor if self.how == "triton" else operand(tensor)


class Gradients(NamedTuple):
    """Gradients of hidden [T, H], weight [V, H] and bias [V]; None where none was asked for."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Needed(NamedTuple):
    """Which gradients are asked for; bias's only where there is a bias."""

    hidden: bool
    weight: bool
    bias: bool


def block_shape(shard: Shard) -> tuple[int, int]:
    """(C, B) of the blocks that are used once and computed again when they are needed again."""
    if shard.how == "csrc":
        return min(shard.tokens, 512), min(shard.vocab, 1024)  # 2 MiB, near the size of a core's L2 cache
    if shard.how == "triton":  # all tokens, so that a block completes its rows of the weight's gradient
        return shard.tokens, _fitting(shard.vocab, 256 << 20, shard.tokens * shard.hidden_TH.element_size(), 256)
    vocab = min(shard.vocab, 8192)
    return _fitting(shard.tokens, block_bytes(shard.hidden_TH), vocab * shard.precise.itemsize, 16), vocab


def kept_shape(shard: Shard, vocab: int) -> tuple[int, int]:
    """(C, B) of the blocks that are kept until their gradient is known: C tokens against all of `vocab`.

    `vocab` is the largest shard's, so that all ranks cut the tokens alike.
    """
    budget = (1 << 30) if shard.hidden_TH.is_cuda else (64 << 20)
    tokens = _fitting(shard.tokens, budget, vocab * shard.precise.itemsize, 64)
    return tokens, vocab if shard.hidden_TH.is_cuda else min(shard.vocab, 1024)


def _fitting(total: int, budget: int, bytes_each: int, multiple: int) -> int:
    """How many fit into the budget of bytes, as a multiple, at least one and at most all."""
    return min(total, max(multiple, budget // bytes_each // multiple * multiple))


def products(shard: Shard, weight_BH: Tensor, bias_B: Tensor | None, out_CB: Tensor) -> Tensor:
    """Write f(hidden weight^T + bias) of a block to `out_CB`: the logits without their scale."""
    product(shard.operand(shard.hidden_TH), weight_BH.t(), out_CB)
    if bias_B is not None:
        out_CB += bias_B
    if shard.settings.softcap is not None:
        out_CB.div_(shard.settings.softcap).tanh_()
    return out_CB


def stats(shard: Shard, *, entropy: bool) -> Stats:
    """What this shard knows of each token's logits; without `entropy`, `weighted` may be left out (0)."""
    if shard.how == "triton":
        from synpro_kernels.ops.linear_logprob import triton_gemm

        return triton_gemm.stats(shard, entropy=entropy)
    tokens, vocab = block_shape(shard)
    found = Stats.empty(shard.tokens, shard.hidden_TH, shard.precise)
    buffer = shard.hidden_TH.new_empty(tokens * vocab, dtype=shard.precise)
    shard = replace(shard, hidden_TH=shard.operand(shard.hidden_TH))
    for v in pieces(shard.vocab, vocab):
        weight_BH, bias_B = shard.columns(v)
        for t in pieces(shard.tokens, tokens):
            part = shard.rows(t)
            block = products(part, weight_BH, bias_B, _block(buffer, part.tokens, len(weight_BH)))
            merge_(block, found.rows(t), part.column_T, v.start, shard.settings, shard.how)
    return found


def _block(buffer: Tensor, tokens: int, columns: int) -> Tensor:
    return buffer[: tokens * columns].view(tokens, columns)


def gradients(shard: Shard, coefficients_T5: Tensor, need: Needed, skip: TileSkip | None = None) -> Gradients:
    """Gradients, computing the logits again: hidden's and bias's with fp32 sums as such, weight's in its own dtype."""
    tokens, vocab = block_shape(shard)
    precise, dtype = shard.precise, shard.weight_VH.dtype
    grad_hidden = shard.hidden_TH.new_zeros(shard.hidden_TH.shape, dtype=precise) if need.hidden else None
    grad_weight = shard.weight_VH.new_empty(shard.weight_VH.shape) if need.weight else None
    grad_bias = shard.weight_VH.new_zeros(shard.vocab, dtype=precise) if need.bias else None
    shard = replace(shard, hidden_TH=shard.operand(shard.hidden_TH))
    # Sums over several blocks of tokens are made in fp32, and rounded to the weight's dtype once.
    staged = need.weight and dtype != precise and (tokens < shard.tokens or shard.hidden_TH.dtype != dtype)
    staging = shard.weight_VH.new_empty((vocab, shard.weight_VH.shape[1]), dtype=precise) if staged else None
    # Triton writes the gradient only, in the operands' dtype; the others turn fp32 logits into it in place.
    in_block = shard.hidden_TH.dtype if shard.how == "triton" else precise
    buffer = shard.hidden_TH.new_empty(tokens * vocab, dtype=in_block)
    for v in pieces(shard.vocab, vocab):
        weight_BH, bias_B = shard.columns(v)
        into = grad_weight[v] if staging is None and grad_weight is not None else staging
        for t in pieces(shard.tokens, tokens):
            block_CB = _block(buffer, t.stop - t.start, len(weight_BH))
            dz_CB = _recompute(shard.rows(t), weight_BH, bias_B, coefficients_T5[t], v.start, block_CB)
            if grad_bias is not None:
                grad_bias[v] += dz_CB.sum(0, dtype=precise)
            kept = None if skip is None else skip.choose(dz_CB)
            if grad_hidden is not None:
                add_product(*_taking_part(dz_CB, weight_BH, kept), grad_hidden[t])
            if into is not None:
                _add_weight_gradient(dz_CB, shard.hidden_TH[t], into[: len(weight_BH)], kept, first=t.start == 0)
        if staging is not None and grad_weight is not None:
            grad_weight[v] = staging[: len(weight_BH)]
    return Gradients(grad_hidden, grad_weight, grad_bias)


def _taking_part(dz_CB: Tensor, weight_BH: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    return (dz_CB, weight_BH) if kept is None else (dz_CB[:, kept], weight_BH[kept])


def _add_weight_gradient(
    dz_CB: Tensor, hidden_CH: Tensor, into_BH: Tensor, kept: Tensor | None, *, first: bool
) -> None:
    """Add dz^T hidden of a block to its rows of the weight's gradient, or write it where the block is the first."""
    if kept is None:
        (product if first else add_product)(dz_CB.t(), hidden_CH, into_BH)
        return
    if first:
        into_BH.zero_()
    rows_nH = product(dz_CB[:, kept].t(), hidden_CH, into_BH.new_empty((len(kept), into_BH.shape[1])))
    into_BH.index_add_(0, kept, rows_nH)


def _recompute(
    part: Shard, weight_BH: Tensor, bias_B: Tensor | None, coefficients_C5: Tensor, start: int, block_CB: Tensor
) -> Tensor:
    """dL/dproduct of a block in the operands' dtype, from its logits computed again."""
    if part.how == "triton":
        from synpro_kernels.ops.linear_logprob import triton_gemm

        return triton_gemm.differentiate(part, weight_BH, bias_B, coefficients_C5, start, block_CB)
    products(part, weight_BH, bias_B, block_CB)
    return differentiate(block_CB, coefficients_C5, part.column_T, start, part.settings, part.how, part.hidden_TH.dtype)
