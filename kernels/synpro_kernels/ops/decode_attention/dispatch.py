"""Which backend computes the attention of decoding: the table of this op."""

from collections.abc import Callable

from torch import Tensor

from synpro_kernels.common.dispatch import Backends
from synpro_kernels.ops.decode_attention import torch_backend
from synpro_kernels.ops.decode_attention.types import DecodeRows

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, DecodeRows], Tensor]


def _triton() -> Attend:
    from synpro_kernels.ops.decode_attention.triton_backend import decode_attention

    return decode_attention


ATTEND: Backends[Attend] = Backends(torch=torch_backend.decode_attention, triton=_triton)
