"""Inner products of weight gradients, each beside gradients that are formed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

import synpro_kernels as sk
from benchmarks.kernels.case import Case, Inputs, Normal, Sizes, bytes_of, wide


def of_influence(sizes: Sizes, normal: Normal) -> Iterator[Case]:
    """Of one product's weight, as wide as a gated layer."""
    x, grad, direction = (
        normal(sizes.tokens, sizes.width),
        normal(sizes.tokens, sizes.ffn),
        normal(sizes.ffn, sizes.width),
    )
    ids = torch.arange(sizes.tokens, device=x.device) * sizes.segments // sizes.tokens
    count, product = sizes.segments, 2.0 * sizes.tokens * sizes.width * sizes.ffn
    edges = [at * sizes.tokens // count for at in range(count + 1)]
    inputs = {"x": x, "grad": grad, "direction": direction, "ids": ids}

    def dots(i: Inputs) -> tuple[Tensor, ...]:
        tokens = ((i["x"] @ i["direction"].T).to(wide(i["x"])) * i["grad"]).sum(-1)
        return (tokens.new_zeros(count).index_add(0, i["ids"], tokens),)

    def gradients(i: Inputs) -> list[Tensor]:
        return [(i["grad"][a:b].T @ i["x"][a:b]).to(wide(i["x"])) for a, b in pairwise(edges)]

    def pairs(i: Inputs) -> tuple[Tensor, ...]:
        flat = torch.stack([one.flatten() for one in gradients(i)])
        return (flat @ flat.T,)

    def prefix(i: Inputs) -> tuple[Tensor, ...]:
        each = gradients(i)
        return torch.stack([(one * i["direction"]).sum() for one in each]), torch.stack(each).sum(0)

    yield Case(
        name="grad_dot", inputs=inputs, plain=dots, limit_flops=product, limit_bytes=bytes_of(x, grad, direction),
        ours=lambda i: (sk.grad_dot(i["x"], i["grad"], i["direction"], i["ids"], segments=count),),
    )  # fmt: skip
    # By tokens, <x_s, x_t> <g_s, g_t> summed over pairs, each pair once.
    yield Case(
        name="pairwise_grad_dot", inputs=inputs, plain=pairs, limit_bytes=bytes_of(x, grad),
        limit_flops=min(product, float(sizes.tokens**2 * (sizes.width + sizes.ffn))),
        ours=lambda i: (sk.pairwise_grad_dot(i["x"], i["grad"], i["ids"], segments=count),),
    )  # fmt: skip
    yield Case(
        name="grad_dot_prefix", inputs=inputs, plain=prefix, limit_flops=product,
        limit_bytes=bytes_of(x, grad, direction) + 4.0 * sizes.width * sizes.ffn,
        ours=lambda i: sk.grad_dot_prefix(i["x"], i["grad"], i["direction"], edges),
    )  # fmt: skip
