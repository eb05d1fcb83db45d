"""The public entry `decode_attention`.

Shape suffixes: B live rows, G groups, S sequences, P pages of T positions, n key heads, r query heads per key head, h
head width.
"""

from torch import Tensor

from synpro_kernels.ops.decode_attention.dispatch import ATTEND
from synpro_kernels.ops.decode_attention.types import DecodeRows


def decode_attention(query_Bnrh: Tensor, key_PnTh: Tensor, value_PnTh: Tensor, rows: DecodeRows) -> Tensor:
    """Attend from one new token of each row to its group's prompt and to its sequence's own new positions.

    A group's prompt is stored once and read once for all its members (as in Hydragen, arXiv 2402.05099). Not
    differentiable.

    Args:
        query_Bnrh: one query per row and head, rotated already; fp16, bf16, fp32 or fp64, as all three.
        key_PnTh: keys of the prompts and behind them, the fed tokens' own included, in pages (as in vLLM, arXiv
            2309.06180). Strides are free but for the last dimension's.
        value_PnTh: their values, laid out alike.
        rows: who belongs to which group, which pages hold whose positions, and how far all are filled.

    Returns:
        [B, n, r, h] in the query's dtype; sums are fp32 (fp64 for fp64). Scores are over the root of h.

    Raises:
        ValueError: naming the argument and what was expected.

    """
    _check(query_Bnrh, key_PnTh, value_PnTh, rows)
    return ATTEND.kernels(query_Bnrh, key_PnTh, value_PnTh)(query_Bnrh, key_PnTh, value_PnTh, rows)


def _check(query: Tensor, key: Tensor, value: Tensor, rows: DecodeRows) -> None:
    batch, n, _, h = query.shape
    for name, tensor in (("key_PnTh", key), ("value_PnTh", value)):
        if tensor.dim() != 4 or (tensor.shape[1], tensor.shape[3]) != (n, h):
            raise ValueError(f"{name}: expected [P, {n}, T, {h}], got {list(tensor.shape)}")
        if tensor.dtype != query.dtype:
            raise ValueError(f"{name}: expected the query's {query.dtype}, got {tensor.dtype}")
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name}: the last dimension's stride is {tensor.stride(-1)}, expected 1")
    if key.shape != value.shape or key.stride() != value.stride():
        raise ValueError("value_PnTh: expected the shape and strides of its keys")
    if len(rows.place_of_row_B) != batch or len(rows.new_length_B) != batch:
        raise ValueError(f"rows: expected place_of_row_B and new_length_B for {batch} rows of the query")
    if rows.slots is not None and len(rows.slots.slot_of_row_B) != batch:
        raise ValueError(f"rows: expected slots for {batch} rows of the query")
    sequences = batch if rows.slots is None else len(rows.slots.row_of_slot) // rows.slots.fed
    for name, table, owners, longest in (
        ("prompt_page_GX", rows.prompt_page_GX, len(rows.prompt_length_G), rows.prompt_longest),
        ("new_page_SY", rows.new_page_SY, sequences, rows.new_longest),
    ):
        least = -(-longest // key.shape[2])
        if table.dim() != 2 or len(table) != owners or table.shape[1] < least:
            raise ValueError(f"rows.{name}: expected [{owners}, {least} or more], got {list(table.shape)}")
