"""The Triton kernels of grad_dot against fp64, at odd shapes, both ways of reading operands.

T tokens, I inputs, O outputs, K directions, S segments.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from synpro_kernels import grad_dot, grad_dot_prefix, pairwise_grad_dot, segment_sum, to_fp8
from synpro_kernels.ops.grad_dot import tiles, triton_segments
from synpro_kernels.ops.grad_dot.definition import (
    grad_dot_definition,
    grad_dot_prefix_definition,
    grad_dot_tokens_definition,
    pairwise_grad_dot_definition,
)
from synpro_kernels.ops.grad_dot.triton_pairs import pair_call
from synpro_kernels.ops.grad_dot.triton_prefix import prefix_call
from synpro_kernels.ops.grad_dot.triton_rows import row_dot_call
from synpro_kernels.testing import assert_as_accurate, using

# Triton's interpreter and loops whose bounds were loaded.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
READING = pytest.mark.parametrize("descriptor", [True, False], ids=["descriptor", "pointer"])
SHAPES = pytest.mark.parametrize(
    ("tokens", "outputs", "inputs"), [(1, 1, 1), (7, 33, 120), (250, 120, 33), (300, 300, 200)], ids=str
)


def layer(tokens: int, outputs: int, inputs: int, dtype: torch.dtype, directions: int = 2) -> tuple[Tensor, ...]:
    torch.manual_seed(tokens + outputs)
    shapes = (tokens, inputs), (tokens, outputs), (directions, outputs, inputs)
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def doubles(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


@HALVES
@READING
@pytest.mark.parametrize("over_inputs", [True, False], ids=["over inputs", "over outputs"])
@SHAPES
def test_row_dots_are_as_accurate_as_plain_pytorch(
    tokens: int, outputs: int, inputs: int, over_inputs: bool, descriptor: bool, dtype: torch.dtype
):
    tensors = layer(tokens, outputs, inputs, dtype)
    found = row_dot_call(*tensors, over_inputs, capability=90, descriptor=descriptor).launch()[0].sum(1)
    assert_as_accurate(
        found, grad_dot_tokens_definition(*tensors), grad_dot_tokens_definition(*doubles(*tensors)), "row dots"
    )


@READING
@pytest.mark.parametrize("over_inputs", [True, False], ids=["over inputs", "over outputs"])
def test_directions_and_tokens_do_not_leak_into_each_other(over_inputs: bool, descriptor: bool):
    """Widths that no tile divides: what a tile reads beyond a direction's end belongs to the next one."""
    x, grad, direction = layer(70, 48, 48, torch.bfloat16, directions=3)
    expected = row_dot_call(x, grad, direction, over_inputs, capability=90, descriptor=descriptor).launch()[0].sum(1)
    direction[1] = torch.inf
    x[5] = torch.nan
    found = row_dot_call(x, grad, direction, over_inputs, capability=90, descriptor=descriptor).launch()[0].sum(1)
    whole = torch.arange(70) != 5
    assert torch.equal(found[[0, 2]][:, whole], expected[[0, 2]][:, whole])
    assert found[:, 5].isnan().all() and not found[1].isfinite().any()


@HALVES
@READING
@pytest.mark.parametrize(("tokens", "outputs", "inputs"), [(1, 1, 1), (7, 33, 120), (250, 120, 33)], ids=str)
def test_pairs_are_as_accurate_as_plain_pytorch(
    tokens: int, outputs: int, inputs: int, descriptor: bool, dtype: torch.dtype
):
    x, grad, _ = layer(tokens, outputs, inputs, dtype)
    ids = torch.tensor([0, 1, 3, -1])[torch.randint(0, 4, (tokens,))]
    x[ids == -1] = torch.nan
    for segments in (4, 20):  # more segments: smaller tiles
        found = pair_call(x, grad, ids, segments, capability=90, descriptor=descriptor).launch()[0]
        plain = pairwise_grad_dot_definition(x, grad, ids, segments=segments)
        truth = pairwise_grad_dot_definition(*doubles(x, grad), ids, segments=segments)
        assert_as_accurate(found, plain, truth, f"{segments} segments")
        assert torch.equal(found, found.t()) and (found[2] == 0).all()


def test_nan_of_a_token_reaches_its_own_segment_alone():
    x, grad, _ = layer(40, 16, 16, torch.bfloat16)
    ids = torch.arange(40) % 3
    x[4] = torch.nan
    found = pair_call(x, grad, ids, 3, capability=90).launch()[0]
    broken = torch.tensor([False, True, False])
    assert torch.equal(found.isnan(), broken[:, None] | broken[None, :])


@HALVES
@READING
@pytest.mark.parametrize("direction_dtype", ["same", "fp32"])
@pytest.mark.parametrize(
    ("shape", "boundaries"),
    [
        ((1, 1, 1), [0, 1]),
        ((7, 33, 120), [0, 0, 3, 7]),
        ((250, 120, 33), [0, 64, 64, 250]),
        ((256, 300, 200), [0, 128, 192, 256]),  # whole blocks: taken without a copy
    ],
    ids=str,
)
def test_the_prefix_scores_and_accumulates_as_accurately_as_plain_pytorch(
    shape: tuple[int, int, int], boundaries: list[int], direction_dtype: str, descriptor: bool, dtype: torch.dtype
):
    x, grad, direction = layer(*shape, dtype)
    direction = direction.float() if direction_dtype == "fp32" else direction
    before = torch.randn(shape[1:])
    total = before.clone()
    shares = prefix_call(x, grad, direction, boundaries, total, capability=90, descriptor=descriptor).launch()[0]
    plain = grad_dot_prefix_definition(x, grad, direction, boundaries, accumulator=before)
    truth = grad_dot_prefix_definition(*doubles(x, grad, direction), boundaries, accumulator=before.double())
    assert_as_accurate(shares.sum(0), plain[0], truth[0], "scores")
    assert_as_accurate(total, plain[1], truth[1], "gradient")


@pytest.mark.parametrize("segments", [1, 33, 100])
@pytest.mark.parametrize("tokens", [1, 700, 2500])
def test_segment_sums_are_those_of_the_cpu_to_the_bit(tokens: int, segments: int):
    values, ids = torch.randn(3, tokens), torch.randint(-1, segments, (tokens,))
    values[:, ids < 0] = torch.nan
    assert torch.equal(triton_segments.segment_sum(values, ids, segments), segment_sum(values, ids, segments=segments))
    turned = values.t().contiguous().t()
    assert torch.equal(
        triton_segments.segment_sum(turned, ids.int(), segments), segment_sum(values, ids, segments=segments)
    )


def test_nothing_to_sum_is_zero():
    assert (triton_segments.segment_sum(torch.empty(2, 0), torch.empty(0, dtype=torch.int64), 4) == 0).all()
    assert triton_segments.segment_sum(torch.ones(2, 3), torch.zeros(3, dtype=torch.int64), 0).shape == (2, 0)


@pytest.fixture
def triton_everywhere() -> Iterator[None]:
    with using("triton"):
        yield


@pytest.mark.usefixtures("triton_everywhere")
def test_the_public_functions_go_through_the_kernels():
    x, grad, direction = layer(90, 40, 72, torch.bfloat16)
    ids = torch.randint(-1, 3, (90,))
    x[ids == -1] = torch.nan
    scores, shares = grad_dot(x, grad, direction, ids, segments=3, per_token=True)
    truth = grad_dot_definition(*doubles(x, grad, direction), ids, segments=3)
    assert_as_accurate(scores, grad_dot_definition(x, grad, direction, ids, segments=3), truth, "scores")
    assert (shares[:, ids < 0] == 0).all() and shares.isfinite().all()

    stored = to_fp8(direction)
    decoded = (stored.values.float() * stored.scale[..., None]).bfloat16()
    wanted = grad_dot(x, grad, decoded, ids, segments=3)
    assert torch.equal(grad_dot(x, grad, stored, ids, segments=3), wanted)

    pairs = pairwise_grad_dot(x, grad, ids, segments=3)
    plain = pairwise_grad_dot_definition(x, grad, ids, segments=3)
    assert_as_accurate(pairs, plain, pairwise_grad_dot_definition(*doubles(x, grad), ids, segments=3), "pairs")
    assert pairwise_grad_dot(x, grad, ids + 1, segments=3).isnan().all()  # an id out of range

    whole = x.nan_to_num(0.0)
    found = grad_dot_prefix(whole, grad, direction, [0, 20, 90])
    plain = grad_dot_prefix_definition(whole, grad, direction, [0, 20, 90])
    truth = grad_dot_prefix_definition(*doubles(whole, grad, direction), [0, 20, 90])
    for name, mine, usual, true in zip(("scores", "gradient"), found, plain, truth, strict=True):
        assert_as_accurate(mine, usual, true, name)

    none = x[:0], grad[:0]
    assert grad_dot(*none, direction, ids[:0], segments=3).tolist() == [[0.0] * 3] * 2
    assert (pairwise_grad_dot(*none, ids[:0], segments=3) == 0).all()
    assert (grad_dot_prefix(*none, direction, [0, 0])[0] == 0).all()


def test_an_architecture_without_tiles_of_its_own_takes_the_smallest():
    assert tiles.prefix_tile(75) == tiles.prefix_tile(80) and tiles.prefix_tile(89) == tiles.prefix_tile(80)
    assert tiles.prefix_tile(103) == tiles.prefix_tile(100)
    assert tiles.prefix_tile(120) == tiles.prefix_tile(89) == tiles.prefix_tile(80)  # 99 KiB of shared memory
    assert tiles.row_tile(90, 4096, 4096).BN > tiles.row_tile(90, 32, 4096).BN
    assert tiles.pair_tile(90, 20).BM == 32 and tiles.pair_tile(90, 500) == tiles.prefix_tile(90)
