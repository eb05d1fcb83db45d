"""linear_logprob's Triton kernels: values and gradients against fp64, at odd shapes."""

from collections.abc import Iterator

import pytest
import torch

from synpro_kernels import linear_cross_entropy, linear_logprob
from synpro_kernels.ops.linear_logprob import forward, triton_gemm
from synpro_kernels.ops.linear_logprob.types import LogitSettings, Stats
from synpro_kernels.testing import assert_as_accurate, using
from synpro_kernels.testing.layers import VARIANTS, check_against_fp64, drawn, make_case

_ON_DTYPES = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="fp32"),
        pytest.param(torch.bfloat16, id="bf16"),
        pytest.param(torch.float16, id="fp16", marks=pytest.mark.slow),
    ],
)


@pytest.fixture(params=["pointers", "descriptors"])
def operands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Everything through Triton, reading operands one way or the other where rows lie on 16 bytes."""
    if torch.cuda.is_available() and request.param == "descriptors" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU has no tensor descriptors")
    capability = 90 if request.param == "descriptors" else 80
    monkeypatch.setattr(triton_gemm, "capability_of", lambda tensor: capability)
    monkeypatch.setattr(triton_gemm, "_processors", lambda tensor: 3)
    with using("triton"):
        yield request.param


@_ON_DTYPES
@pytest.mark.parametrize("vocab", [1, 601])
@pytest.mark.parametrize("tokens", [1, 7, 150])
def test_values_and_gradients_are_as_accurate_as_plain_pytorch(operands, tokens, vocab, dtype):
    for variant in VARIANTS if tokens < 150 else VARIANTS[:2]:
        if variant == "extreme" and dtype == torch.float16:
            continue  # 3e3 times normal numbers are beyond it
        check_against_fp64(make_case(tokens, vocab, dtype, variant), dtype, variant)


def test_descriptors_are_used_where_the_layout_allows(operands):
    def described(width: int) -> bool:
        hidden, weight = torch.zeros(64, width, dtype=torch.bfloat16), torch.zeros(300, width, dtype=torch.bfloat16)
        settings = LogitSettings(temperature=1.0, softcap=None, ignore_index=-100, vocab_start=0)
        shard = forward.shard_of(hidden, weight, torch.zeros(64, dtype=torch.int64), None, settings)
        capability = triton_gemm.capability_of(hidden)
        call = triton_gemm.stats_call(shard, entropy=True, capability=capability, processors=3)
        return call.options["DESCRIPTOR"]

    assert described(120) == (operands == "descriptors") and not described(121)


def test_a_shard_of_the_vocabulary_ignores_the_other_shards_targets(operands):
    """Statistics of two shards, merged, are those of the whole layer."""
    case = make_case(70, 601, torch.float32, "bare")
    settings = LogitSettings(temperature=1.0, softcap=None, ignore_index=-100, vocab_start=0)
    whole = forward.shard_of(case.hidden_TH, case.weight_VH, case.target_T, None, settings)
    found = forward.finish(triton_gemm.stats(whole, entropy=True), whole, case.target_T, None)
    parts = []
    for rows_of in (slice(0, 310), slice(310, 601)):
        shard = forward.shard_of(case.hidden_TH, case.weight_VH[rows_of], case.target_T - rows_of.start, None, settings)
        parts.append(triton_gemm.stats(shard, entropy=True))
    joined = triton_gemm._merge_parts(Stats(*(torch.stack(pair) for pair in zip(*parts, strict=True))))
    again = forward.finish(joined, whole, case.target_T, None)
    for a, b in zip(again, found, strict=True):
        torch.testing.assert_close(a, b)


def test_nan_in_a_row_is_not_hidden_and_stays_in_its_row(operands):
    case = make_case(9, 601, torch.float32, "bare")
    case.hidden_TH[3, 5] = float("nan")
    found = linear_logprob(case.hidden_TH, case.weight_VH, case.target_T, entropy=True)
    for values in found:
        assert values[3].isnan() and torch.isfinite(values[:3]).all() and torch.isfinite(values[4:]).all()


def test_entries_masked_by_the_bias_leave_the_vocabulary(operands):
    case = make_case(20, 601, torch.float32, "bare")
    bias = torch.zeros(601).index_fill_(0, torch.arange(0, 300), -torch.inf)  # whole tiles come first and are masked
    target = case.target_T % 301
    masked = linear_logprob(case.hidden_TH, case.weight_VH, target + 300, bias=bias, entropy=True)
    expected = linear_logprob(case.hidden_TH, case.weight_VH[300:], target, entropy=True)
    for a, b in zip(masked, expected, strict=True):
        torch.testing.assert_close(a, b)


@_ON_DTYPES
@pytest.mark.parametrize("variant", ["bare", "mapped", "some ignored"])
def test_gradients_made_in_the_forward_equal_the_rematerialised_ones(operands, dtype, variant):
    case = make_case(150, 601, dtype, variant)
    along = drawn((1, *case.weight_VH.shape), 0).to(dtype)

    def gradients(as_dtype: torch.dtype, fused: bool) -> list[torch.Tensor]:
        leaves = case.leaves(as_dtype)
        bias = leaves[2] if len(leaves) == 3 else None
        entry = {"z_loss": 0.1, "reduction": "sum" if fused else "none", "bias": bias}
        asked = {"along": along, "along_tokens": True} if fused else {}
        found = linear_cross_entropy(leaves[0], leaves[1], case.target_T, **entry, **asked, **case.options)
        grads = torch.autograd.grad(found.loss.sum(), leaves)
        return [found.loss.sum(), *grads, found.along.sum() if fused else (grads[1] * along.to(as_dtype)).sum()]

    truth, remade = gradients(torch.float64, fused=False), gradients(dtype, fused=False)
    slope_terms = float((truth[2] * along).abs().sum())  # the slope is a sum whose terms cancel
    for at, (mine, usual, exact) in enumerate(zip(gradients(dtype, True), remade, truth, strict=True)):
        terms = slope_terms if at == len(truth) - 1 else 0.0
        assert_as_accurate(mine, usual, exact, f"{variant} {dtype} {at}", terms=terms)


def test_strided_tensors_give_what_contiguous_ones_give(operands):
    case = make_case(20, 257, torch.float32, "mapped")

    def run(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, target: torch.Tensor) -> list[torch.Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in (hidden, weight, bias)]
        found = linear_logprob(leaves[0], leaves[1], target, bias=leaves[2], entropy=True)
        return [*found, *torch.autograd.grad(sum(values.sum() for values in found), leaves)]

    plain = case.hidden_TH, case.weight_VH, case.bias_V, case.target_T
    strided = (
        case.hidden_TH.t().contiguous().t(),
        case.weight_VH.repeat_interleave(2, 0)[::2],
        case.bias_V.repeat_interleave(2)[::2],
        case.target_T.repeat_interleave(2)[::2],
    )
    for a, b in zip(run(*strided), run(*plain), strict=True):
        torch.testing.assert_close(a, b)
