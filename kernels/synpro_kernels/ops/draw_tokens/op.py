"""The public entry `draw_tokens`, and its backends. Shape suffixes: B rows, V vocabulary."""

from collections.abc import Callable

import torch
from torch import Tensor

from synpro_kernels.common.dispatch import Backends
from synpro_kernels.ops.draw_tokens import torch_backend

Draw = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""(logits_BV, uniform_B, temperature): token_B, logprob_B."""


def draw_tokens(logits_BV: Tensor, uniform_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Of each row the token whose slice of the cumulative softmax(logits / temperature) holds the row's number.

    Not differentiable. On the CPU C++ writes no probabilities: it sums blocks of them and looks into the one it hits.

    Args:
        logits_BV: fp32 (fp64 in PyTorch), finite; columns next to each other.
        uniform_B: fp64 in [0, 1), contiguous.
        temperature: above 0.

    Returns:
        The tokens, int64 [B], and the logs of their probabilities [B] in the logits' dtype. A token of probability 0 is
        never drawn. Sums over the vocabulary are fp64.

    Raises:
        ValueError: naming the argument and what was expected.

    """
    if logits_BV.dim() != 2 or 0 in logits_BV.shape[1:] or logits_BV.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"logits_BV: expected fp32 [B, V >= 1], got {logits_BV.dtype} {list(logits_BV.shape)}")
    if uniform_B.shape != logits_BV.shape[:1] or uniform_B.dtype != torch.float64:
        found = f"{uniform_B.dtype} {list(uniform_B.shape)}"
        raise ValueError(f"uniform_B: expected torch.float64 [{len(logits_BV)}], got {found}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected > 0, got {temperature}")
    return DRAW.kernels(logits_BV)(logits_BV, uniform_B, temperature)


def _csrc(logits_BV: Tensor, uniform_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    columns = logits_BV if logits_BV.stride(1) == 1 else logits_BV.contiguous()
    return torch.ops.synpro_csrc.draw_tokens(columns, uniform_B.contiguous(), temperature)


DRAW: Backends[Draw] = Backends(torch=torch_backend.draw_tokens, csrc=lambda: _csrc, csrc_dtypes=(torch.float32,))
