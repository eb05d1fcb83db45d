"""The Triton kernels of the attention of decoding against one softmax in fp64."""

import dataclasses

import pytest
import torch

from synpro_kernels import decode_attention_definition
from synpro_kernels.ops.decode_attention.triton_backend import decode_attention, prompt_call
from synpro_kernels.ops.decode_attention.triton_heads import store_heads
from synpro_kernels.testing import assert_as_accurate
from tests.kernels.decoding import HEADS, PROBLEMS, heads, rotate_pairs, store_heads_definition

# Triton's interpreter and what was loaded.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_values_are_as_accurate_as_one_softmax_in_plain_pytorch(problem, dtype):
    inputs, rows = PROBLEMS[problem].make(dtype)
    truth = decode_attention_definition(*inputs.to(torch.float64), rows)
    assert_as_accurate(decode_attention(*inputs, rows), decode_attention_definition(*inputs, rows), truth, problem)


def test_a_long_prompt_is_read_in_parts():
    inputs, rows = PROBLEMS["a long prompt and many members"].make(torch.bfloat16)
    call = prompt_call(inputs.query_Bnrh, inputs.key_PnTh, inputs.value_PnTh, rows)
    assert call.grid == (1, 2, 5)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in call.launch())


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_heads_are_normed_rotated_and_stored_in_their_places_alone(case, dtype):
    given = heads(*HEADS[case])
    plain, exact, ours = given.to(dtype), given.to(dtype).to(torch.float64), given.to(dtype)
    found, rounded, truth = store_heads(*ours), store_heads_definition(plain), store_heads_definition(exact)
    assert found.dtype == dtype and found.is_contiguous()
    for what, ours_, plain_, exact_ in (
        ("query", found, rounded, truth),
        ("key", ours.key_PnTh, plain.key_PnTh, exact.key_PnTh),
        ("value", ours.value_PnTh, plain.value_PnTh, exact.value_PnTh),
    ):
        assert_as_accurate(ours_, plain_, exact_, f"{case}: {what}")


def test_mean_squares_of_other_ranks_heads_take_the_place_of_a_row_s_own():
    given = heads(*HEADS["grouped, full width"]).to(torch.bfloat16)
    norm = given.norm
    assert norm is not None
    doubled = dataclasses.replace(norm, means_B2=torch.full((len(given.mixed_BF), 2), 4.0), eps=0.0)
    found = store_heads(*given._replace(norm=doubled))
    halved = given._replace(mixed_BF=given.mixed_BF.double() / 2, norm=None).to(torch.float64)
    expected = store_heads_definition(halved)
    weight = norm.query_weight.double().view(1, *expected.shape[1:])
    angles = given.cos_Bh.double()[:, None, None], given.sin_Bh.double()[:, None, None]
    # The weight stands before the rotation: undone, applied and done again.
    back = rotate_pairs(expected, angles[0], -angles[1]) * weight
    torch.testing.assert_close(found.double(), rotate_pairs(back, *angles), rtol=2e-2, atol=2e-2)
