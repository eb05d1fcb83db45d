"""What stands between the products of a training step, and the optimizer's iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import synpro_kernels as sk
from benchmarks.kernels.case import Case, Normal, Run, Sizes, bytes_of, through


def of_training(sizes: Sizes, normal: Normal) -> Iterator[Case]:
    """Norms, gates and turns with their gradients."""
    x, norm = normal(sizes.tokens, sizes.width), normal(sizes.width)
    gate_up = normal(sizes.tokens, 2 * sizes.ffn)
    upon_x, upon_gated = normal(sizes.tokens, sizes.width), normal(sizes.tokens, sizes.ffn)

    def normed(function: Callable[[Tensor, Tensor], Tensor]) -> Run:
        return lambda i: through(function, i["upon"], i["x"], i["norm"])

    def gated(function: Callable[[Tensor], Tensor]) -> Run:
        return lambda i: through(function, i["upon"], i["gate_up"])

    yield Case(
        name="rms_norm, with gradients", inputs={"x": x, "norm": norm, "upon": upon_x},
        limit_flops=0.0, limit_bytes=5 * bytes_of(x),
        ours=normed(lambda x, norm: sk.rms_norm(x, norm, 1e-6)),
        plain=normed(lambda x, norm: F.rms_norm(x, x.shape[-1:], norm, 1e-6)),
    )  # fmt: skip
    yield Case(
        name="swiglu, with gradients", inputs={"gate_up": gate_up, "upon": upon_gated},
        limit_flops=0.0, limit_bytes=4 * bytes_of(gate_up),
        ours=gated(sk.swiglu), plain=gated(lambda both: F.silu(both.chunk(2, -1)[0]) * both.chunk(2, -1)[1]),
    )  # fmt: skip

    heads = x.view(len(x), 1, -1, min(64, sizes.width // 2))
    cos, sin = sk.rotary_tables(normal(len(x), 1, heads.shape[-1] // 2).float())

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        by_cos, by_sin = cos[:, :, None].to(x.dtype), sin[:, :, None].to(x.dtype)
        return x * by_cos + torch.cat((-second, first), -1) * by_sin

    yield Case(
        name="rotary, with gradient", inputs={"heads": heads, "upon": upon_x.view_as(heads)},
        limit_flops=0.0, limit_bytes=4 * bytes_of(heads),
        ours=lambda i: through(lambda x: sk.rotary(x, cos, sin), i["upon"], i["heads"]),
        plain=lambda i: through(turned, i["upon"], i["heads"]),
    )  # fmt: skip


def of_the_optimizer(sizes: Sizes, normal: Normal) -> Iterator[Case]:
    """One matrix as Muon takes it."""
    one = normal(sizes.width, sizes.ffn)
    yield Case(
        name="orthogonalize",
        inputs={"x": one},
        ours=lambda i: (sk.orthogonalize(i["x"]),),
        plain=lambda i: (_newton_schulz(i["x"]),),
        # A step's Gram matrix and its square, of which half is the other half, and a whole product.
        limit_flops=5 * (sizes.width**2 * sizes.ffn + sizes.width**3 + 2 * sizes.width**2 * sizes.ffn),
        limit_bytes=2 * bytes_of(one),
    )


def _newton_schulz(x: Tensor) -> Tensor:
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x
