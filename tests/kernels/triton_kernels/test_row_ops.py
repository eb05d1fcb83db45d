"""The Triton kernels of norms and gates, and of their gradients, against fp64."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synpro_kernels.ops.row_ops import triton_backend as kernels
from synpro_kernels.testing import assert_as_accurate

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
# Whole and broken tiles; a row in many, and more tiles than programs.
SHAPES = [(1, 1), (3, 7), (2, 3, 48), (33, 130), (5, 1100), (2, 5000), (0, 16)]
EPS = 1e-5


def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(sum(shape))
    return (4.0 * torch.randn(shape, generator=generator, device="cpu")).to(dtype).to(torch.empty(0).device)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


def gate(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def differentiated(run: Callable[..., Tensor], upon: Tensor, *inputs: Tensor) -> list[Tensor]:
    leaves = [one.detach().clone().requires_grad_() for one in inputs]
    out = run(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, upon)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@DTYPES
def test_a_norm_and_its_gradients_are_as_accurate_as_pytorch_s(shape, dtype):
    x, weight, upon = (
        numbers(*shape, dtype=dtype),
        numbers(shape[-1], dtype=dtype),
        numbers(*shape, dtype=dtype).flip(-1),
    )
    found = [kernels.rms_norm(x, weight, EPS), *kernels.rms_norm_backward(upon, x, weight, EPS)]
    plain, truth = (differentiated(norm, *(one.to(of) for one in (upon, x, weight))) for of in (dtype, torch.float64))
    # Both terms of the gradient of x are about this large where they cancel.
    scale = torch.rsqrt(x.double().square().mean(-1, keepdim=True) + EPS)
    terms = float((upon.double() * weight.double() * scale).abs().max()) if x.numel() else 0.0
    for name, *of in zip(("out", "x", "weight"), found, plain, truth, strict=True):
        assert of[0].dtype == dtype and of[0].is_contiguous()
        assert_as_accurate(*of, f"{name} of {shape}", terms=terms)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@DTYPES
def test_a_gate_and_its_gradient_are_as_accurate_as_pytorch_s(shape, dtype):
    x, upon = numbers(*shape[:-1], 2 * shape[-1], dtype=dtype), numbers(*shape, dtype=dtype).flip(-1)
    found = [kernels.swiglu(x), kernels.swiglu_backward(upon, x)]
    plain, truth = (differentiated(gate, upon.to(of), x.to(of)) for of in (dtype, torch.float64))
    for name, *of in zip(("out", "gate_up"), found, plain, truth, strict=True):
        assert of[0].dtype == dtype
        assert_as_accurate(*of, f"{name} of {shape}")


def test_more_tiles_than_programs_leave_no_row_out():
    """And none twice, the last tiles being short."""
    x, weight = numbers(1500, 2100, dtype=torch.bfloat16), torch.ones(2100, dtype=torch.bfloat16)
    call = kernels.norm_gradient_call(torch.ones_like(x), x, weight, EPS)
    assert call.grid == (256,) and len(x) > 2 * 256
    grad_x, sums = call.launch()
    truth = differentiated(norm, torch.ones_like(x).double(), x.double(), weight.double())
    assert_as_accurate(sums.sum(0), truth[2].float(), truth[2], "weight", terms=1500.0)
    assert torch.isfinite(grad_x).all()


def test_rows_that_do_not_lie_in_a_row_are_the_same():
    x, weight = numbers(6, 40, dtype=torch.float32), numbers(20, dtype=torch.float32)
    assert torch.equal(kernels.rms_norm(x[:, ::2], weight, EPS), kernels.rms_norm(x[:, ::2].contiguous(), weight, EPS))
    assert torch.equal(kernels.swiglu(x.T), kernels.swiglu(x.T.contiguous()))
    one = torch.ones(20).expand(6, 20)  # as the gradient of a sum comes
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(
            kernels.rms_norm_backward(one, x[:, ::2], weight, EPS),
            kernels.rms_norm_backward(one.contiguous(), x[:, ::2].contiguous(), weight, EPS),
            strict=True,
        )
    )


def test_gates_far_from_zero_neither_overflow_nor_vanish():
    x = torch.tensor([[-3e38, -200.0, -90.0, 0.0, 90.0, 3e38, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    out, found = kernels.swiglu(x), kernels.swiglu_backward(torch.ones(1, 6), x)
    assert torch.isfinite(out).all() and torch.isfinite(found).all()
    assert torch.equal(found[0, [0, 1, 3, 4, 5]], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_nan_stays_in_its_row_and_place():
    x = numbers(4, 66, dtype=torch.float32)
    x[2, 5] = float("nan")
    out = kernels.rms_norm(x, torch.ones(66), EPS)
    assert out.isnan().any(-1).tolist() == [False, False, True, False]
    assert kernels.swiglu(x).isnan().nonzero().tolist() == [[2, 5]]


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("shape", [(5, 3, 2, 64), (7, 2, 3, 6), (1, 1, 1, 2), (3, 2, 40, 130), (0, 2, 4, 8)], ids=str)
@DTYPES
def test_turned_heads_and_their_gradient_are_as_accurate_as_pytorch_s(shape, alike, dtype):
    times, batch, heads, width = shape
    x = numbers(times, batch, heads, 3 * width, dtype=dtype)[..., width : 2 * width]
    upon = numbers(*shape, dtype=dtype).flip(-1)
    angle = numbers(times, 1 if alike else batch, width // 2, dtype=torch.float32).repeat(1, 1, 2)
    cos, sin = angle.cos(), angle.sin()
    found = [kernels.rotary(x, cos, sin), kernels.rotary_backward(upon, cos, sin)]

    def turned(of: torch.dtype) -> list[Tensor]:
        def run(x: Tensor) -> Tensor:
            first, second = x.chunk(2, -1)
            cos, sin = angle.to(of).cos()[:, :, None], angle.to(of).sin()[:, :, None]
            return x * cos + torch.cat((-second, first), -1) * sin

        return differentiated(run, upon.to(of), x.to(of))

    for name, *of in zip(("out", "x"), found, turned(dtype), turned(torch.float64), strict=True):
        assert of[0].dtype == dtype and of[0].is_contiguous()
        assert_as_accurate(*of, f"{name} of {shape}")
