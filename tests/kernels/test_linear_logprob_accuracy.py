"""Values and every gradient of linear_logprob against fp64, at odd shapes, on each backend."""

import pytest
import torch

from synpro_kernels import linear_logprob, linear_logprob_definition
from synpro_kernels.common.extension import csrc_status
from synpro_kernels.testing import assert_as_accurate, using
from synpro_kernels.testing.layers import VARIANTS, check_against_fp64, make_case, results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("vocab", [1, 2001])
@pytest.mark.parametrize("tokens", [1, 7, 250])
def test_values_and_gradients_are_as_accurate_as_plain_pytorch(backend, tokens, vocab, dtype):
    for variant in VARIANTS:
        check_against_fp64(make_case(tokens, vocab, dtype, variant), dtype, variant)


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="fp32", marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.slow),
        pytest.param(torch.float16, id="fp16", marks=pytest.mark.slow),
    ],
)
def test_a_real_vocabulary_and_width_are_as_accurate_as_plain_pytorch(backend, dtype):
    check_against_fp64(make_case(7, 49152, dtype, "bare", width=576), dtype, "V 49152, H 576")


def test_csrc_equals_the_pytorch_path_across_block_borders():
    """More tokens and more vocabulary than one C++ block, neither a multiple of it."""
    loaded, reason = csrc_status()
    if not loaded:
        pytest.skip(f"csrc: {reason}")
    case = make_case(700, 2600, torch.float32, "mapped")
    leaves = case.leaves(torch.float32)
    compiled = results(linear_logprob, leaves, case)
    with using("torch"):
        in_torch = results(linear_logprob, leaves, case)
    for name, exact in results(linear_logprob_definition, case.leaves(torch.float64), case).items():
        assert_as_accurate(compiled[name], in_torch[name], exact, name)


def test_definition_passes_gradcheck():
    case = make_case(4, 5, torch.float64, "mapped")
    case.target_T[1] = -100

    def outputs(hidden, weight, bias):
        return tuple(linear_logprob_definition(hidden, weight, case.target_T, bias=bias, entropy=True, **case.options))

    assert torch.autograd.gradcheck(outputs, case.leaves(torch.float64))


def test_op_passes_gradcheck_in_fp64():
    case = make_case(4, 5, torch.float64, "mapped")
    case.target_T[2] = -100

    def outputs(hidden, weight, bias):
        return tuple(linear_logprob(hidden, weight, case.target_T, bias=bias, entropy=True, **case.options))

    assert torch.autograd.gradcheck(outputs, case.leaves(torch.float64))
