"""The Triton kernels that the static table compares, each with the arguments of a real launch.

Tensors have no memory, so any size is free. Other libraries' kernels are compiled as those libraries launch them.
Shapes: T tokens, H width, V vocabulary; B tokens or columns of the block that a kernel is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.linear_logprob.problem import Shape
from synpro_kernels.common.launch import Call
from synpro_kernels.ops.linear_logprob.types import IGNORE, LogitSettings, Shard
from synpro_kernels.testing.compile_only import Compiled, compile_call, compile_kernel

_HEAD = 128
_PROCESSORS = 132  # of an H200; decides into how many parts ours cuts the vocabulary, not the code


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel; `build` compiles it for a compute capability, and is called within `compile_for` of it."""

    library: str
    does: str
    build: Callable[[int], Compiled]
    capability: int | None = None
    """The one that it is written for; None: all."""


def _meta(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def ours(shape: Shape, *, entropy: bool) -> Iterator[Case]:
    """Both kernels with a matrix product, and the two that work on rows of products."""
    from synpro_kernels.ops.linear_logprob import block_sizes, triton_gemm, triton_rows
    from synpro_kernels.ops.linear_logprob.types import Stats

    shard = _shard(shape)
    chunk, block = block_sizes.cached(shard, shape.vocab)[0], block_sizes.whole_columns(shard)[1]
    coefficients, out = _meta(shape.tokens, 5), _meta(shape.tokens, block, dtype=shape.dtype)
    products, column = _meta(chunk, shape.vocab), _meta(chunk, dtype=torch.int64)
    weight = shard.weight_VH[:block]

    calls: dict[str, Callable[[int], Call]] = {
        "product + statistics": lambda capability: triton_gemm.stats_call(
            shard, entropy=entropy, capability=capability, processors=_PROCESSORS
        ),
        "product + gradient": lambda capability: triton_gemm.gradient_call(
            shard, weight, None, coefficients, 0, out, capability=capability
        ),
        "rows: statistics": lambda capability: triton_rows.merge_call(
            products, Stats.empty(chunk, products, torch.float32), column, 0, shard.settings
        ),
        "rows: gradient": lambda capability: triton_rows.differentiate_call(
            products, coefficients[:chunk], column, 0, shard.settings, shape.dtype
        ),
    }
    for does, call in calls.items():
        yield Case(library="ours", does=does, build=partial(_compiled, call))
    yield from _distilling(shape)
    yield from _row_ops(shape)


def persistent(shape: Shape, *, entropy: bool) -> Iterator[Case]:
    """The forms of the forward in which a warp loads. Raises ImportError where Triton has no Gluon for sm_90."""
    from synpro_kernels.ops.linear_logprob import gluon_forward

    for form, warps in gluon_forward.FORMS.items():
        call = gluon_forward.stats_call(_shard(shape), entropy=entropy, processors=_PROCESSORS, warps=warps)
        build = partial(_compiled, lambda _, call=call: call)
        yield Case(library="ours", does=f"product + statistics, {form}", build=build, capability=90)


def _shard(shape: Shape) -> Shard:
    from synpro_kernels.ops.linear_logprob.dispatch import LINEAR_LOGPROB

    return Shard(
        hidden_TH=_meta(shape.tokens, shape.width, dtype=shape.dtype),
        weight_VH=_meta(shape.vocab, shape.width, dtype=shape.dtype),
        bias_V=None,
        column_T=_meta(shape.tokens, dtype=torch.int64),
        settings=LogitSettings(temperature=1.0, softcap=None, ignore_index=IGNORE, vocab_start=0),
        kernels=LINEAR_LOGPROB.named("triton"),
    )


def _distilling(shape: Shape) -> Iterator[Case]:
    """The row kernels of linear_distill at a temperature, of one teacher and of several."""
    from synpro_kernels.ops.linear_distill import triton_rows
    from synpro_kernels.ops.linear_distill.types import Norms, Slopes

    tokens, column = 1024, _meta(1024, dtype=torch.int64)
    block, teacher, student = _meta(tokens, shape.vocab), _meta(tokens, 3), _meta(tokens, 4)
    slopes = Slopes(inverse_temperature=0.5, pull=0.5, label=0.5)
    calls = {
        "distilling: norms": triton_rows.norms_call(block, Norms.empty(tokens, block), column, 0, 0.5, True),
        "distilling: part of a mean": triton_rows.mix_call(block, teacher, block, 0.5, False),
        "distilling: slopes": triton_rows.differentiate_call(
            block, block, None, student, teacher, column, 0, slopes, shape.dtype
        ),
        "distilling: slopes, several": triton_rows.differentiate_call(
            block, block, block, student, teacher, column, 0, slopes, shape.dtype
        ),
    }
    for does, call in calls.items():
        yield Case(library="ours", does=does, build=lambda _, call=call: compile_call(call))


def _row_ops(shape: Shape) -> Iterator[Case]:
    """Norms, gates and turns of heads, and the gradients that are not the turn's own way back."""
    from synpro_kernels.ops.row_ops import triton_backend as rows

    tokens, width, dtype = shape.tokens, shape.width, shape.dtype
    x, weight, angle = _meta(tokens, width, dtype=dtype), _meta(width, dtype=dtype), _meta(tokens, 1, _HEAD)
    # Gates as wide as Llama 3.1 8B has them beside its 4096; queries as they lie in the product with keys and values.
    gate, gates = (_meta(tokens, part * 7 * width // 2, dtype=dtype) for part in (1, 2))
    heads = _meta(tokens, 1, max(1, width // _HEAD), 3 * _HEAD, dtype=dtype)[..., :_HEAD]
    calls = {
        "norm": rows.norm_call(x, weight, 1e-6),
        "norm: gradient": rows.norm_gradient_call(x, x, weight, 1e-6),
        "gate": rows.gate_call(gates),
        "gate: gradient": rows.gate_gradient_call(gate, gates),
        "turn of heads": rows.rotary_call(heads, angle, angle),
    }
    for does, call in calls.items():
        yield Case(library="ours", does=does, build=lambda _, call=call: compile_call(call))


def _compiled(call: Callable[[int], Call], capability: int) -> Compiled:
    return compile_call(call(capability))


def cce(shape: Shape) -> Iterator[Case]:
    """Cut Cross-Entropy's three kernels, the backward one with and without skipping. Raises ImportError."""
    from cut_cross_entropy import cce_backward, cce_lse_forward, indexed_dot
    from cut_cross_entropy.tl_utils import b_bin_fn

    tokens, width, vocab = shape.tokens, shape.width, shape.vocab
    hidden, weight = _meta(tokens, width, dtype=shape.dtype), _meta(vocab, width, dtype=shape.dtype)
    target, row, one = _meta(tokens, dtype=torch.int64), _meta(tokens), _meta(1)
    strides = (*hidden.stride(), *weight.stride())
    bins = {"B_BIN": b_bin_fn(tokens)}

    def forward(capability: int) -> Compiled:
        locks = _meta(tokens // 128, dtype=torch.uint32)
        arguments = (hidden, weight, row, None, locks, None, None, tokens, vocab, width, *strides, 1, 1)
        return compile_kernel(cce_lse_forward._cce_lse_forward_kernel, *arguments, num_locks=len(locks), **bins)

    def target_product(capability: int) -> Compiled:
        arguments = (hidden, weight, target, None, row, tokens, width, *strides, 1, 1)
        return compile_kernel(indexed_dot._indexed_neg_dot_forward_kernel, *arguments, SHIFT=False, **bins)

    def backward(capability: int, *, skip: bool) -> Compiled:
        groups = -(-width // 64)
        locks_T, locks_V = (_meta(-(-count // groups), groups, dtype=torch.int32) for count in (tokens, vocab))
        order = _meta(vocab, dtype=torch.int32) if skip else None
        arguments = (
            *(hidden, weight, row, one, 1.0 / tokens, None, order, None, target, hidden, locks_T, weight, locks_V),
            *(tokens, width, vocab, *locks_T.shape, *locks_V.shape, *strides, 1),
            torch.finfo(shape.dtype).eps / 32 if skip else None,
        )
        kernel = cce_backward._cce_backward_kernel
        return compile_kernel(kernel, *arguments, SHIFT=False, REQUIRES_GRAD=True, **bins)

    yield Case(library="CCE", does="product + logsumexp", build=forward)
    yield Case(library="CCE", does="target logits", build=target_product)
    yield Case(library="CCE", does="backward, skipping", build=lambda capability: backward(capability, skip=True))
    yield Case(library="CCE", does="backward, exact", build=lambda capability: backward(capability, skip=False))


def liger(shape: Shape) -> Iterator[Case]:
    """Liger's row kernel; its matrix products are PyTorch's. Raises ImportError."""
    from liger_kernel.ops import cross_entropy, fused_linear_cross_entropy

    vocab = shape.vocab
    logits, target, loss = _meta(1024, vocab, dtype=shape.dtype), _meta(1024, dtype=torch.int64), _meta(1024)
    widest = 1 << (vocab - 1).bit_length()

    def rows(capability: int) -> Compiled:
        return compile_kernel(
            cross_entropy.liger_cross_entropy_kernel,
            *(logits, vocab, target, 1, None, loss, None, 1, None, 0, None, 0),
            *(vocab, shape.tokens, shape.tokens, 0.0, -100, 0.0, 0.0, "mean", None),
            RETURN_Z_LOSS=False,
            RETURN_TOKEN_ACCURACY=False,
            RETURN_PREDICTED_TOKENS=False,
            HAS_WEIGHT=False,
            HAS_SOFTCAPPING=False,
            HAS_GRADIENTS=True,
            BLOCK_SIZE=min(fused_linear_cross_entropy.MAX_FUSED_SIZE, widest),
            num_warps=32,
        )

    yield Case(library="Liger", does="rows: loss + gradient", build=rows)
