"""Which backend computes the attention of decoding: the table of this op."""

from collections.abc import Callable

import torch
from torch import Tensor

from synpro_kernels.common.dispatch import Backends
from synpro_kernels.ops.decode_attention import torch_backend
from synpro_kernels.ops.decode_attention.types import DecodeRows

Attend = Callable[[Tensor, Tensor, Tensor, DecodeRows], Tensor]


def _triton() -> Attend:
    from synpro_kernels.ops.decode_attention.triton_backend import decode_attention

    return decode_attention


def _csrc(query_Bnrh: Tensor, key_PnTh: Tensor, value_PnTh: Tensor, rows: DecodeRows) -> Tensor:
    sequence_B = torch.arange(len(query_Bnrh)) if rows.slots is None else rows.slots.sequence_of_row_B
    return torch.ops.synpro_csrc.decode_attention(
        query_Bnrh.contiguous(), key_PnTh, value_PnTh, rows.row_of_place, rows.place_of_row_B, rows.prompt_length_G,
        rows.prompt_page_GX.contiguous(), rows.new_length_B, rows.new_page_SY.contiguous(), sequence_B,
    )  # fmt: skip


ATTEND: Backends[Attend] = Backends(
    torch=torch_backend.decode_attention, csrc=lambda: _csrc, csrc_dtypes=(torch.bfloat16, torch.float32),
    triton=_triton,
)  # fmt: skip
