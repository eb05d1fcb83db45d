"""`rms_norm`, `swiglu` and `rotary` against fp64 on every path and for every instruction set, and what they refuse."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synpro_kernels import rms_norm, rotary, rotary_tables, swiglu
from synpro_kernels.common.extension import csrc_status
from synpro_kernels.testing import assert_as_accurate, nan_filled_empty

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
# Whole and broken registers; one row, some, and so many that threads share them.
SHAPES = [(1, 1), (1, 576), (3, 7), (5, 33), (32, 80), (2, 3, 48), (300, 130), (0, 16)]
LANES = pytest.mark.parametrize("lanes", [16, 8, 4], ids=["AVX-512", "AVX2", "portable"])
EPS = 1e-5


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(0)
    return (4.0 * torch.randn(shape)).to(dtype)


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    """The formula itself."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def plain_gate(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@DTYPES
def test_a_norm_is_as_accurate_as_pytorch_s(backend, shape, dtype):
    x, weight = numbers(*shape, dtype=dtype), numbers(shape[-1], dtype=dtype)
    found = rms_norm(x, weight, EPS)
    assert found.dtype == dtype and found.shape == x.shape
    assert_as_accurate(
        found, F.rms_norm(x, shape[-1:], weight, EPS), plain_norm(x.double(), weight.double()), str(shape)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@DTYPES
def test_a_gate_is_as_accurate_as_pytorch_s(backend, shape, dtype):
    x = numbers(*shape[:-1], 2 * shape[-1], dtype=dtype)
    gate, up = x.chunk(2, -1)
    found = swiglu(x)
    assert found.dtype == dtype and found.shape == shape
    assert_as_accurate(found, F.silu(gate) * up, plain_gate(x.double()), str(shape))


def compiled(name: str) -> Callable[..., Tensor]:
    """The op of C++ itself; skips where it was not built."""
    loaded, reason = csrc_status()
    if not loaded:
        pytest.skip(f"csrc: {reason}")
    return getattr(torch.ops.synpro_csrc, name)


@LANES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_instruction_set_is_as_accurate_and_a_row_depends_on_no_other(dtype, lanes):
    x, weight = numbers(41, 2 * 77, dtype=dtype), numbers(2 * 77, dtype=dtype)
    with nan_filled_empty():
        norm, gate = compiled("rms_norm")(x, weight, EPS, lanes), compiled("swiglu")(x, lanes)
    wide = x.double(), weight.double()
    assert_as_accurate(norm, F.rms_norm(x, (154,), weight, EPS), plain_norm(*wide), "norm")
    assert_as_accurate(gate, F.silu(x[:, :77]) * x[:, 77:], plain_gate(wide[0]), "gate")
    for row in (0, 17, 40):
        assert torch.equal(compiled("rms_norm")(x[row], weight, EPS, lanes), norm[row])
        assert torch.equal(compiled("swiglu")(x[row], lanes), gate[row])


def test_gates_far_from_zero_neither_overflow_nor_vanish(backend):
    x = torch.tensor([[-3e38, -200.0, -90.0, 0.0, 90.0, 3e38, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    assert_as_accurate(swiglu(x), F.silu(x[:, :6]), plain_gate(x.double()), "gates")


@DTYPES
def test_nan_stays_in_its_row_and_place(backend, dtype):
    x = numbers(4, 66, dtype=dtype)
    x[2, 5] = float("nan")
    assert rms_norm(x, torch.ones(66, dtype=dtype), EPS).isnan().any(-1).tolist() == [False, False, True, False]
    assert swiglu(x).isnan().nonzero().tolist() == [[2, 5]]


def test_rows_that_do_not_lie_in_a_row_are_the_same(backend):
    x, weight = numbers(6, 40), numbers(20)
    torch.testing.assert_close(rms_norm(x[:, ::2], weight, EPS), rms_norm(x[:, ::2].contiguous(), weight, EPS))
    torch.testing.assert_close(swiglu(x.T), swiglu(x.T.contiguous()))


def test_what_wants_a_gradient_gets_pytorch_s(backend):
    x, weight = numbers(3, 10).requires_grad_(), numbers(10).requires_grad_()
    (rms_norm(x, weight, EPS).sum() + swiglu(x).sum()).backward()
    theirs = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    (plain_norm(*theirs).sum() + plain_gate(theirs[0]).sum()).backward()
    torch.testing.assert_close(x.grad, theirs[0].grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weight.grad, theirs[1].grad, rtol=1e-4, atol=1e-4)


def test_other_shapes_and_dtypes_are_refused_by_name(backend):
    for x, weight in (
        (numbers(3, 4), numbers(5)),
        (numbers(3, 4), numbers(4).half()),
        (torch.ones(3, 4).int(), numbers(4)),
    ):
        with pytest.raises(ValueError, match=r"^(x|weight_H): expected"):
            rms_norm(x, weight, EPS)
    for x in (numbers(3, 5), torch.ones(3, 4).int(), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"^gate_up: expected"):
            swiglu(x)


def gradients(run: Callable[..., Tensor], *inputs: Tensor, upon: Tensor) -> list[Tensor]:
    leaves = [one.detach().requires_grad_() for one in inputs]
    run(*leaves).backward(upon)
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@DTYPES
def test_gradients_of_a_norm_are_as_accurate_as_pytorch_s(backend, shape, dtype):
    inputs, upon = (numbers(*shape, dtype=dtype), numbers(shape[-1], dtype=dtype)), numbers(*shape, dtype=dtype).flip(0)
    truth = gradients(plain_norm, *(one.double() for one in inputs), upon=upon.double())
    plain = gradients(lambda x, weight: F.rms_norm(x, shape[-1:], weight, EPS), *inputs, upon=upon)
    # Both terms of a gradient are about this large where they cancel.
    terms = float(truth[0].abs().max()) * shape[-1] ** 0.5 if truth[0].numel() else 0.0
    for name, found, *others in zip(
        ("x", "weight"),
        gradients(lambda x, weight: rms_norm(x, weight, EPS), *inputs, upon=upon),
        plain,
        truth,
        strict=True,
    ):
        assert found.dtype == dtype
        assert_as_accurate(found, *others, f"{name} of {shape}", terms=terms)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@DTYPES
def test_gradients_of_a_gate_are_as_accurate_as_pytorch_s(backend, shape, dtype):
    x, upon = numbers(*shape[:-1], 2 * shape[-1], dtype=dtype), numbers(*shape, dtype=dtype).flip(0)
    truth = gradients(plain_gate, x.double(), upon=upon.double())
    plain = gradients(lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1], x, upon=upon)
    (found,) = gradients(swiglu, x, upon=upon)
    assert_as_accurate(found, plain[0], truth[0], str(shape))


@LANES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_instruction_set_has_the_same_gradients_and_none_depends_on_threads(dtype, lanes):
    x, weight, upon = numbers(300, 77, dtype=dtype), numbers(77, dtype=dtype), numbers(300, 77, dtype=dtype).flip(0)
    both = numbers(300, 154, dtype=dtype)
    of_norm, of_gate = compiled("rms_norm_backward"), compiled("swiglu_backward")
    with nan_filled_empty():
        found = [*of_norm(upon, x, weight, EPS, lanes), of_gate(upon, both, lanes)]
    truth = [
        *gradients(plain_norm, x.double(), weight.double(), upon=upon.double()),
        *gradients(plain_gate, both.double(), upon=upon.double()),
    ]
    plain = [
        *gradients(lambda x, weight: F.rms_norm(x, (77,), weight, EPS), x, weight, upon=upon),
        *gradients(lambda x: F.silu(x[:, :77]) * x[:, 77:], both, upon=upon),
    ]
    for name, *of in zip(("x", "weight", "gate_up"), found, plain, truth, strict=True):
        assert_as_accurate(*of, name)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = [*of_norm(upon, x, weight, EPS, lanes), of_gate(upon, both, lanes)]
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, again, found))


def test_gradients_of_gates_far_from_zero_neither_overflow_nor_vanish(backend):
    x = torch.tensor([[-3e38, -200.0, -90.0, 0.0, 90.0, 200.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    (found,) = gradients(swiglu, x, upon=torch.ones(1, 6))
    assert torch.isfinite(found).all()
    assert torch.equal(found[0, [0, 1, 3, 4, 5]], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_gradients_are_no_function_to_differentiate_again():
    compiled("rms_norm_backward")
    x = numbers(3, 8).requires_grad_()
    for name, out in (("rms_norm", rms_norm(x, torch.ones(8), EPS)), ("swiglu", swiglu(x))):
        with pytest.raises(RuntimeError, match=f"{name}'s gradients are not differentiable"):
            torch.autograd.grad(out.sum(), x, create_graph=True)


def plain_rotary(x: Tensor, angle: Tensor) -> Tensor:
    """As complex numbers, whose argument grows by the angle; fp64."""
    first, second = x.double().chunk(2, -1)
    turned = torch.complex(first, second) * torch.polar(torch.ones(()).double(), angle[..., : first.shape[-1]].double())
    return torch.cat((turned.real, turned.imag), -1)


def turned_by_ops(x: Tensor, angle: Tensor) -> Tensor:
    """As Megatron makes it, of several ops in x's dtype."""
    first, second = x.chunk(2, -1)
    return x * angle.cos().to(x.dtype) + torch.cat((-second, first), -1) * angle.sin().to(x.dtype)


# A row of angles for all rows, and each row its own; heads that lie in a wider product, and broken registers.
HEADS = [(5, 3, 2, 64, True), (7, 2, 3, 6, False), (1, 1, 1, 2, True), (130, 2, 4, 34, True), (0, 2, 4, 8, True)]


@pytest.mark.parametrize("case", HEADS, ids=str)
@DTYPES
def test_turned_heads_and_their_gradient_are_as_accurate_as_pytorch_s(backend, case, dtype):
    times, batch, heads, width, alike = case
    x = numbers(times, batch, heads, 3 * width, dtype=dtype)[..., width : 2 * width]
    half = numbers(times, 1 if alike else batch, 1, width // 2)
    angle, upon = torch.cat((half, half), -1), numbers(times, batch, heads, width, dtype=dtype).flip(-1)
    tables = rotary_tables(half[:, :, 0])
    found = rotary(x, *tables)
    assert found.dtype == dtype and found.is_contiguous()
    assert_as_accurate(found, turned_by_ops(x, angle), plain_rotary(x, angle), str(case))
    (gradient,) = gradients(lambda x: rotary(x, *tables), x, upon=upon)
    (plain,) = gradients(lambda x: turned_by_ops(x, angle), x, upon=upon)
    assert_as_accurate(gradient, plain, plain_rotary(upon, -angle), str(case))


@LANES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_instruction_set_turns_alike(dtype, lanes):
    x, angle = numbers(9, 2, 3, 22, dtype=dtype), numbers(9, 1, 1, 11).repeat(1, 1, 1, 2)
    cos, sin = rotary_tables(angle[:, :, 0, :11])
    with nan_filled_empty():
        found, back = (compiled("rotary")(x, cos, sin, way, lanes) for way in (False, True))
    assert_as_accurate(found, turned_by_ops(x, angle), plain_rotary(x, angle), "rotary")
    assert_as_accurate(back, turned_by_ops(x, -angle), plain_rotary(x, -angle), "rotary, back")


def test_what_cannot_be_turned_is_refused_by_name(backend):
    x = numbers(3, 2, 4, 8)
    fits = numbers(3, 1, 8)
    for heads, cos, sin, name in (
        (x[0], fits, fits, "x_SBnh"),
        (x[..., :7], fits, fits, "x_SBnh"),
        (x, numbers(3, 1, 4), fits, "cos"),
        (x, numbers(3, 3, 8), fits, "cos"),
        (x, fits, numbers(3, 2, 8), "sin"),
        (x, fits, fits.double(), "sin"),
        (x, numbers(3, 1, 16)[..., ::2], fits, "cos"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            rotary(heads, cos, sin)
