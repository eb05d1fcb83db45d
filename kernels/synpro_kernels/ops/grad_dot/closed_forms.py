"""Scores of the parameters that are no matrix product: biases, elementwise scales, embedding tables.

Each is a few elementwise operations on blocks of tokens, bound by memory; plain PyTorch on every device. The sum over a
model's parameters of these and of `grad_dot` is the score of the whole model; a tied table counts once for each use.
Shapes: T tokens, C tokens of a block, H width, K directions.
"""

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import precise
from synpro_kernels.common.pieces import block_bytes, pieces
from synpro_kernels.ops.grad_dot.segments import by_segment
from synpro_kernels.ops.grad_dot.types import GradDots
from synpro_kernels.ops.grad_dot.validate import (
    check_device,
    check_direction,
    check_ids,
    check_tokens,
    refuse_gradients,
)


@overload
def bias_dot(
    grad_out: Tensor, direction: Tensor, segment_ids: Tensor, *, segments: int, per_token: Literal[False] = False
) -> Tensor: ...
@overload
def bias_dot(
    grad_out: Tensor, direction: Tensor, segment_ids: Tensor, *, segments: int, per_token: Literal[True]
) -> GradDots: ...
def bias_dot(
    grad_out: Tensor, direction: Tensor, segment_ids: Tensor, *, segments: int, per_token: bool = False
) -> Tensor | GradDots:
    """Score a bias: sum over t in segment i of grad_out_t . v.

    Args:
        grad_out: [..., O], the gradient of what the bias was added to.
        direction: v [O] or [K, O], dtype of grad_out or fp32.
        segment_ids: [...], int32 or int64 in [-1, segments); -1 belongs to none.
        segments: the number of segments.
        per_token: also return each token's share.

    Returns:
        [segments] or [K, segments], fp32 (fp64 for fp64 inputs); with per_token a `GradDots`.

    Raises:
        ValueError: naming the argument; also for a tensor that requires grad while grad mode is on.

    """
    _check(grad_out, segment_ids, segments, "grad_out")
    check_direction(direction, grad_out.shape[-1], like=grad_out, like_name="grad_out")
    refuse_gradients(grad_out=grad_out, direction=direction)
    grad_TO, v_OK = _rows(grad_out), precise(_rows(direction)).t()
    # One thin product for all directions: the tokens are read once, whatever K is.
    dots_KT = _blockwise(grad_TO, lambda block: precise(grad_TO[block]) @ v_OK)
    return by_segment(dots_KT, segment_ids, segments, several=direction.dim() == 2, per_token=per_token)


@overload
def scale_dot(
    normalised: Tensor, grad_out: Tensor, direction: Tensor, segment_ids: Tensor, *,
    segments: int, per_token: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def scale_dot(
    normalised: Tensor, grad_out: Tensor, direction: Tensor, segment_ids: Tensor, *,
    segments: int, per_token: Literal[True],
) -> GradDots: ...  # fmt: skip
def scale_dot(
    normalised: Tensor, grad_out: Tensor, direction: Tensor, segment_ids: Tensor, *,
    segments: int, per_token: bool = False,
) -> Tensor | GradDots:  # fmt: skip
    """Score an elementwise scale y = scale * normalised, such as a norm's weight: sum of grad_out_t . v * normalised_t.

    Arguments, result and errors are those of `bias_dot`, but for:

    Args:
        normalised: [..., H], what the scale multiplied (for RMSNorm x / rms(x), not its input).
        grad_out: [..., H], the gradient of y, dtype and device of normalised.
        direction: v [H] or [K, H], dtype of normalised or fp32.

    """
    _check(normalised, segment_ids, segments, "normalised")
    check_tokens("grad_out", grad_out, like=normalised, like_name="normalised")
    if grad_out.shape != normalised.shape:
        raise ValueError(f"grad_out: expected {tuple(normalised.shape)} like normalised, got {tuple(grad_out.shape)}")
    check_direction(direction, normalised.shape[-1], like=normalised, like_name="normalised")
    refuse_gradients(normalised=normalised, grad_out=grad_out, direction=direction)
    norm_TH, grad_TH = _rows(normalised), _rows(grad_out)
    v_HK = precise(_rows(direction)).t()
    # b . (v * x) = (b * x) . v: the elementwise product is made once and serves every direction.
    dots_KT = _blockwise(norm_TH, lambda block: (precise(grad_TH[block]) * norm_TH[block]) @ v_HK)
    return by_segment(dots_KT, segment_ids, segments, several=direction.dim() == 2, per_token=per_token)


@overload
def embedding_dot(
    grad_rows: Tensor, token_ids: Tensor, direction: Tensor, segment_ids: Tensor, *,
    segments: int, vocab_start: int | None = None, per_token: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def embedding_dot(
    grad_rows: Tensor, token_ids: Tensor, direction: Tensor, segment_ids: Tensor, *,
    segments: int, vocab_start: int | None = None, per_token: Literal[True],
) -> GradDots: ...  # fmt: skip
def embedding_dot(
    grad_rows: Tensor, token_ids: Tensor, direction: Tensor, segment_ids: Tensor, *,
    segments: int, vocab_start: int | None = None, per_token: bool = False,
) -> Tensor | GradDots:  # fmt: skip
    """Score an embedding table y_t = table[token_t]: sum over t in segment i of grad_rows_t . V[token_t].

    Arguments, result and errors are those of `bias_dot`, but for:

    Args:
        grad_rows: [..., H], the gradient of the looked-up rows.
        token_ids: [...], int32 or int64. Read also where the segment id is -1.
        direction: V [vocabulary, H] or [K, vocabulary, H], dtype of grad_rows or fp32.
        vocab_start: None: V is the whole table. Else: V is a shard whose first row is this id, and tokens of other
            shards count 0, so that the scores of all shards add up.

    """
    _check(grad_rows, segment_ids, segments, "grad_rows")
    rows = direction.shape[-2] if direction.dim() >= 2 else 1
    check_direction(direction, rows, grad_rows.shape[-1], like=grad_rows, like_name="grad_rows")
    if token_ids.dtype not in (torch.int32, torch.int64) or token_ids.shape != segment_ids.shape:
        expected = f"int32 or int64 {tuple(segment_ids.shape)}"
        raise ValueError(f"token_ids: expected {expected}, got {token_ids.dtype} {tuple(token_ids.shape)}")
    check_device("token_ids", token_ids, grad_rows, "grad_rows")
    refuse_gradients(grad_rows=grad_rows, direction=direction)
    tables_KVH = direction.reshape(-1, *direction.shape[-2:])
    dots_KT = _embedding_dots(_rows(grad_rows), token_ids.reshape(-1), tables_KVH, vocab_start)
    return by_segment(dots_KT, segment_ids, segments, several=direction.dim() == 3, per_token=per_token)


def _embedding_dots(grad_TH: Tensor, token_T: Tensor, tables_KVH: Tensor, vocab_start: int | None) -> Tensor:
    row_T = token_T.long() - (vocab_start or 0)
    in_shard_T = (row_T >= 0) & (row_T < tables_KVH.shape[1])
    # A whole table must hold every token; a shard's caller counts on the others, and no shard can tell a stray id.
    if vocab_start is None and token_T.device.type == "cpu" and not bool(in_shard_T.all()):
        raise ValueError(f"token_ids: expected 0 to {tables_KVH.shape[1] - 1}, got {int(token_T[~in_shard_T][0])}")
    row_T = torch.where(in_shard_T, row_T, 0)  # a row to read in any case; what comes of it is overwritten
    # A token that no table holds shows as NaN where raising would make the host wait; one of another shard counts 0.
    foreign = torch.nan if vocab_start is None else 0.0

    def dots(block: slice) -> Tensor:
        # The direction's rows are gathered; a table of gradients [V, H], one for each segment, never exists.
        grad_CH = precise(grad_TH[block])
        dots_K = [(grad_CH * table_VH[row_T[block]]).sum(-1) for table_VH in tables_KVH]
        return torch.stack(dots_K, -1).masked_fill(~in_shard_T[block, None], foreign)

    return _blockwise(grad_TH, dots)


def _check(tokens: Tensor, segment_ids: Tensor, segments: int, name: str) -> None:
    check_tokens(name, tokens)
    check_ids(segment_ids, segments, tokens.shape[:-1], tokens.device)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _blockwise(rows_TH: Tensor, dots: Callable[[slice], Tensor]) -> Tensor:
    """Return the [C, K] results of blocks of tokens as one [K, T]."""
    tokens = max(1, rows_TH.shape[0])  # one empty block where there are none
    return torch.cat([dots(block) for block in pieces(tokens, block_bytes(rows_TH) // (rows_TH.shape[1] * 8))]).t()
