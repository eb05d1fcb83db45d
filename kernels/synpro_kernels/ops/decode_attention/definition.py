"""What the op computes, row by row in one softmax over prompt and new positions: the oracle of its backends."""

import math

import torch
from torch import Tensor

from synpro_kernels.ops.decode_attention.types import DecodeRows


def decode_attention_definition(
    query_Bnrh: Tensor,
    prompt_key_GnTh: Tensor,
    prompt_value_GnTh: Tensor,
    new_key_BnTh: Tensor,
    new_value_BnTh: Tensor,
    rows: DecodeRows,
) -> Tensor:
    """Attention in the tensors' own dtype, [B, n, r, h]; arguments as in `decode_attention`."""
    out_Bnrh = torch.empty_like(query_Bnrh)
    for row, place in enumerate(rows.place_of_row_B.tolist()):
        group = place // rows.members
        held = row if rows.slots is None else int(rows.slots.sequence_of_row_B[row])
        prompt, new = int(rows.prompt_length_G[group]), int(rows.new_length_B[row])
        key_nTh = torch.cat((prompt_key_GnTh[group, :, :prompt], new_key_BnTh[held, :, :new]), 1)
        value_nTh = torch.cat((prompt_value_GnTh[group, :, :prompt], new_value_BnTh[held, :, :new]), 1)
        score_nrT = query_Bnrh[row] @ key_nTh.mT / math.sqrt(query_Bnrh.shape[-1])
        out_Bnrh[row] = torch.softmax(score_nrT, -1) @ value_nTh
    return out_Bnrh
