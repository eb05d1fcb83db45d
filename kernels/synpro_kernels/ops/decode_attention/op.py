"""The public entry `decode_attention`.

Shape suffixes: B live rows, G groups, T positions that a buffer holds, n key heads, r query heads per key head, h head
width.
"""

from torch import Tensor

from synpro_kernels.ops.decode_attention.dispatch import ATTEND
from synpro_kernels.ops.decode_attention.types import DecodeRows


def decode_attention(
    query_Bnrh: Tensor,
    prompt_key_GnTh: Tensor,
    prompt_value_GnTh: Tensor,
    new_key_BnTh: Tensor,
    new_value_BnTh: Tensor,
    rows: DecodeRows,
) -> Tensor:
    """Attend from one new token of each row to its group's prompt and to its sequence's own new positions.

    A group's prompt is stored once and read once for all its members (as in Hydragen, arXiv 2402.05099). Not
    differentiable.

    Args:
        query_Bnrh: one query per row and head, rotated already; fp16, bf16, fp32 or fp64, as all five.
        prompt_key_GnTh: keys of the prompts; buffers may hold more groups and positions than are filled. Strides are
            free but for the last dimension's.
        prompt_value_GnTh: their values, laid out alike.
        new_key_BnTh: keys behind the prompts, the fed tokens' own included; likewise. With `rows.slots`, of sequences.
        new_value_BnTh: their values.
        rows: who belongs to which group, and how far all are filled.

    Returns:
        [B, n, r, h] in the query's dtype; sums are fp32 (fp64 for fp64). Scores are over the root of h.

    Raises:
        ValueError: naming the argument and what was expected.

    """
    _check(query_Bnrh, prompt_key_GnTh, prompt_value_GnTh, new_key_BnTh, new_value_BnTh, rows)
    tensors = query_Bnrh, prompt_key_GnTh, prompt_value_GnTh, new_key_BnTh, new_value_BnTh
    return ATTEND.kernels(*tensors)(*tensors, rows)


def _check(
    query: Tensor, prompt_key: Tensor, prompt_value: Tensor, key: Tensor, value: Tensor, rows: DecodeRows
) -> None:
    batch, n, _, h = query.shape
    groups = len(rows.prompt_length_G)
    sequences = batch if rows.slots is None else len(rows.slots.row_of_slot) // rows.slots.fed
    buffers = {
        "prompt_key_GnTh": (prompt_key, groups, rows.prompt_longest),
        "prompt_value_GnTh": (prompt_value, groups, rows.prompt_longest),
        "new_key_BnTh": (key, sequences, rows.new_longest),
        "new_value_BnTh": (value, sequences, rows.new_longest),
    }
    for name, (tensor, least, longest) in buffers.items():
        held, heads, length, width = tensor.shape
        if (heads, width) != (n, h) or held < least or length < longest:
            raise ValueError(f"{name}: expected at least [{least}, {n}, {longest}, {h}], got {list(tensor.shape)}")
        if tensor.dtype != query.dtype:
            raise ValueError(f"{name}: expected the query's {query.dtype}, got {tensor.dtype}")
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name}: the last dimension's stride is {tensor.stride(-1)}, expected 1")
    if prompt_key.stride() != prompt_value.stride() or key.stride() != value.stride():
        raise ValueError("prompt_value_GnTh, new_value_BnTh: expected the strides of their keys")
    if len(rows.place_of_row_B) != batch or len(rows.new_length_B) != batch:
        raise ValueError(f"rows: expected place_of_row_B and new_length_B for {batch} rows of the query")
    if rows.slots is not None and len(rows.slots.slot_of_row_B) != batch:
        raise ValueError(f"rows: expected slots for {batch} rows of the query")
