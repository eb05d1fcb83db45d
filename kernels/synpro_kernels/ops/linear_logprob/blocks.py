"""Walks a layer in blocks of [tokens, vocabulary], so that no more than a few blocks of logits exist at a time.

Works on one vocabulary shard; `forward` and `backward` join shards. Shapes: T tokens, H width, V columns of the shard;
C tokens and B columns of a block; n columns that a `TileSkip` leaves.
"""

from dataclasses import replace

from torch import Tensor

from synpro_kernels.common.arithmetic import add_product, product
from synpro_kernels.common.pieces import pieces
from synpro_kernels.ops.linear_logprob.skip import TileSkip
from synpro_kernels.ops.linear_logprob.types import Gradients, Needed, Shard, Stats


def products(shard: Shard, weight_BH: Tensor, bias_B: Tensor | None, out_CB: Tensor) -> Tensor:
    """Write f(hidden weight^T + bias) of a block to `out_CB`: the logits without their scale.

    The scale is left to the row kernels, which multiply by it as they read: a pass over the block less.
    """
    product(shard.operand(shard.hidden_TH), weight_BH.t(), out_CB)
    if bias_B is not None:
        out_CB += bias_B
    if shard.settings.softcap is not None:
        # In place, and left as tanh: the backward's slope 1 - tanh^2 needs just that, and the scale stays a scalar.
        out_CB.div_(shard.settings.softcap).tanh_()
    return out_CB


def stats(shard: Shard, *, entropy: bool) -> Stats:
    """What this shard knows of each token's logits; without `entropy`, `weighted` may be left out (0)."""
    if shard.kernels.fused is not None:
        return shard.kernels.fused.stats(shard, entropy=entropy)
    tokens, vocab = shard.kernels.block_shape(shard)
    seen = Stats.empty(shard.tokens, shard.hidden_TH, shard.precise)
    buffer = shard.hidden_TH.new_empty(tokens * vocab, dtype=shard.precise)
    # On a CPU halves are widened: all of hidden once, the weight, usually the larger of the two, block by block.
    shard = replace(shard, hidden_TH=shard.operand(shard.hidden_TH))
    # Vocabulary outside: a block of the weight is widened once and meets all tokens before the next is touched.
    for v in pieces(shard.vocab, vocab):
        weight_BH, bias_B = shard.columns(v)
        for t in pieces(shard.tokens, tokens):
            part = shard.rows(t)
            block_CB = products(part, weight_BH, bias_B, _block(buffer, part.tokens, len(weight_BH)))
            shard.kernels.merge_(block_CB, seen.rows(t), part.column_T, v.start, shard.settings)
    return seen


def _block(buffer: Tensor, tokens: int, columns: int) -> Tensor:
    """The buffer's beginning as one contiguous block: ragged ones at the edges need no memory of their own."""
    return buffer[: tokens * columns].view(tokens, columns)


def gradients(shard: Shard, coefficients_T5: Tensor, need: Needed, skip: TileSkip | None = None) -> Gradients:
    """Gradients, computing the logits again: hidden's and bias's with fp32 sums as such, weight's in its own dtype."""
    tokens, vocab = shard.kernels.block_shape(shard)
    precise, dtype = shard.precise, shard.weight_VH.dtype
    # Hidden's and bias's gradients are added to by many blocks; a row of the weight's belongs to one block of columns.
    grad_hidden = shard.hidden_TH.new_zeros(shard.hidden_TH.shape, dtype=precise) if need.hidden else None
    grad_weight = shard.weight_VH.new_empty(shard.weight_VH.shape) if need.weight else None
    grad_bias = shard.weight_VH.new_zeros(shard.vocab, dtype=precise) if need.bias else None
    shard = replace(shard, hidden_TH=shard.operand(shard.hidden_TH))
    # Sums over several blocks of tokens are made in fp32, and rounded to the weight's dtype once. The walk goes over
    # the vocabulary outside and over tokens inside, so that this takes one block's rows in fp32 and not all of [V, H].
    staged = need.weight and dtype != precise and (tokens < shard.tokens or shard.hidden_TH.dtype != dtype)
    staging = shard.weight_VH.new_empty((vocab, shard.weight_VH.shape[1]), dtype=precise) if staged else None
    # Fused kernels write the gradient only, in the operands' dtype; the others turn fp32 logits into it in place.
    in_block = precise if shard.kernels.fused is None else shard.hidden_TH.dtype
    buffer = shard.hidden_TH.new_empty(tokens * vocab, dtype=in_block)
    for v in pieces(shard.vocab, vocab):
        weight_BH, bias_B = shard.columns(v)
        into = grad_weight[v] if staging is None and grad_weight is not None else staging
        for t in pieces(shard.tokens, tokens):
            block_CB = _block(buffer, t.stop - t.start, len(weight_BH))
            dz_CB = _recompute(shard.rows(t), weight_BH, bias_B, coefficients_T5[t], v.start, block_CB)
            if grad_bias is not None:
                grad_bias[v] += dz_CB.sum(0, dtype=precise)
            columns_n = None if skip is None else skip.choose(dz_CB)
            if grad_hidden is not None:
                factors = (dz_CB, weight_BH) if columns_n is None else (dz_CB[:, columns_n], weight_BH[columns_n])
                # Blocks come one after another, so the order of these sums is that of the vocabulary on every run.
                add_product(*factors, grad_hidden[t])
            if into is not None:
                _add_weight_gradient(dz_CB, shard.hidden_TH[t], into[: len(weight_BH)], columns_n, first=t.start == 0)
        if staging is not None and grad_weight is not None:
            grad_weight[v] = staging[: len(weight_BH)]
    return Gradients(grad_hidden, grad_weight, grad_bias)


def _add_weight_gradient(
    dz_CB: Tensor, hidden_CH: Tensor, into_BH: Tensor, columns_n: Tensor | None, *, first: bool
) -> None:
    """Add dz^T hidden of a block to its rows of the weight's gradient, or write it where the block is the first."""
    if columns_n is None:
        (product if first else add_product)(dz_CB.t(), hidden_CH, into_BH)
        return
    if first:
        # The buffer is uninitialised, or holds the block before; columns that are skipped must read as 0.
        into_BH.zero_()
    rows_nH = product(dz_CB[:, columns_n].t(), hidden_CH, into_BH.new_empty((len(columns_n), into_BH.shape[1])))
    # The columns are distinct, so that atomics on CUDA have no order of additions that could show in the bits.
    into_BH.index_add_(0, columns_n, rows_nH)


def _recompute(
    part: Shard, weight_BH: Tensor, bias_B: Tensor | None, coefficients_C5: Tensor, start: int, block_CB: Tensor
) -> Tensor:
    """dL/dproduct of a block in the operands' dtype, from its logits computed again."""
    kernels = part.kernels
    if kernels.fused is not None:
        return kernels.fused.differentiate(part, weight_BH, bias_B, coefficients_C5, start, block_CB)
    # The same function as in the forward pass: other rounding here would make p of another softmax than m and s are of.
    products(part, weight_BH, bias_B, block_CB)
    return kernels.differentiate(block_CB, coefficients_C5, part.column_T, start, part.settings, part.hidden_TH.dtype)
