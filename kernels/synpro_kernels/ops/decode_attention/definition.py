"""What the op computes, row by row in one softmax over prompt and new positions: the oracle of its backends."""

import math

import torch
from torch import Tensor

from synpro_kernels.ops.decode_attention.types import DecodeRows


def decode_attention_definition(query_Bnrh: Tensor, key_PnTh: Tensor, value_PnTh: Tensor, rows: DecodeRows) -> Tensor:
    """Attention in the tensors' own dtype, [B, n, r, h]; arguments as in `decode_attention`."""

    def run(pages_PnTh: Tensor, page_X: Tensor, length: int) -> Tensor:
        return torch.cat([pages_PnTh[page] for page in page_X.tolist()], 1)[:, :length]

    out_Bnrh = torch.empty_like(query_Bnrh)
    for row, place in enumerate(rows.place_of_row_B.tolist()):
        group = place // rows.members
        sequence = row if rows.slots is None else int(rows.slots.sequence_of_row_B[row])
        prompt = rows.prompt_page_GX[group], int(rows.prompt_length_G[group])
        new = rows.new_page_SY[sequence], int(rows.new_length_B[row])
        key_nTh, value_nTh = (torch.cat((run(pages, *prompt), run(pages, *new)), 1) for pages in (key_PnTh, value_PnTh))
        score_nrT = query_Bnrh[row] @ key_nTh.mT / math.sqrt(query_Bnrh.shape[-1])
        out_Bnrh[row] = torch.softmax(score_nrT, -1) @ value_nTh
    return out_Bnrh
