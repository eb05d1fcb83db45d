"""`decode_attention` against one softmax in fp64, on every path, and what it refuses."""

import dataclasses

import pytest
import torch

from synpro_kernels import decode_attention, decode_attention_definition, store_heads
from synpro_kernels.common.extension import csrc_status
from synpro_kernels.testing import assert_as_accurate, nan_filled_empty
from tests.kernels.decoding import HEADS, PROBLEMS, heads, rotate_pairs, store_heads_definition

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_as_accurate_as_one_softmax_in_plain_pytorch(backend, problem, dtype):
    inputs, rows = PROBLEMS[problem].make(dtype)
    found = decode_attention(*inputs, rows)
    assert found.dtype == dtype
    truth = decode_attention_definition(*inputs.to(torch.float64), rows)
    assert_as_accurate(found, decode_attention_definition(*inputs, rows), truth, problem)


@pytest.mark.parametrize("lanes", [16, 8, 4], ids=["AVX-512", "AVX2", "portable"])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_every_instruction_set_is_as_accurate_as_one_softmax_in_plain_pytorch(problem, dtype, lanes):
    loaded, reason = csrc_status()
    if not loaded:
        pytest.skip(f"csrc: {reason}")
    inputs, rows = PROBLEMS[problem].make(dtype)
    sequences = torch.arange(len(inputs.query_Bnrh)) if rows.slots is None else rows.slots.sequence_of_row_B
    with nan_filled_empty():
        found = torch.ops.synpro_csrc.decode_attention(
            *inputs, rows.row_of_place, rows.place_of_row_B, rows.prompt_length_G, rows.prompt_page_GX,
            rows.new_length_B, rows.new_page_SY, sequences, lanes,
        )  # fmt: skip
    truth = decode_attention_definition(*inputs.to(torch.float64), rows)
    assert_as_accurate(found, decode_attention_definition(*inputs, rows), truth, problem)


def test_a_value_that_is_no_number_reaches_its_own_row_alone(backend):
    inputs, rows = PROBLEMS["ragged"].make(torch.float32)
    clean = decode_attention(*inputs, rows)
    inputs.query_Bnrh[2, 1] = float("nan")
    found = decode_attention(*inputs, rows)
    assert bool(found[2, 1].isnan().all())
    found[2, 1] = clean[2, 1]
    torch.testing.assert_close(found, clean, rtol=0, atol=1e-6)


def test_fp64_is_kept(device):
    inputs, rows = PROBLEMS["ragged"].make(torch.float64)
    torch.testing.assert_close(decode_attention(*inputs, rows), decode_attention_definition(*inputs, rows))


def test_scores_that_fp32_cannot_exponentiate_are_merged_without_overflow(backend):
    inputs, rows = PROBLEMS["ragged"].make(torch.float32)
    far = inputs._replace(query_Bnrh=inputs.query_Bnrh * 300.0)
    truth = decode_attention_definition(*far.to(torch.float64), rows)
    torch.testing.assert_close(decode_attention(*far, rows).double(), truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"key_PnTh": torch.zeros(9, 3, 32, 32)}, r"key_PnTh: expected \[P, 2, T, 32\]"),
        ({"value_PnTh": torch.zeros(9, 2, 32, 32).bfloat16()}, "value_PnTh: expected the query's"),
        ({"key_PnTh": torch.zeros(9, 2, 32, 32).mT}, "key_PnTh: the last dimension's stride is 32"),
        ({"key_PnTh": torch.zeros(9, 2, 16, 32)}, "value_PnTh: expected the shape and strides of its keys"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, named):
    inputs, rows = PROBLEMS["ragged"].make(torch.float32)
    with pytest.raises(ValueError, match=named):
        decode_attention(*inputs._replace(**change), rows)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"new_length_B": torch.ones(3, dtype=torch.int64)}, "for 6 rows of the query"),
        ({"prompt_page_GX": torch.zeros(3, 2, dtype=torch.int64)}, r"rows.prompt_page_GX: expected \[3, 3 or more\]"),
        ({"new_page_SY": torch.zeros(5, 2, dtype=torch.int64)}, r"rows.new_page_SY: expected \[6, 1 or more\]"),
    ],
)
def test_rows_of_another_batch_are_refused(change, named):
    inputs, rows = PROBLEMS["ragged"].make(torch.float32)
    with pytest.raises(ValueError, match=named):
        decode_attention(*inputs, dataclasses.replace(rows, **change))


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_are_normed_rotated_and_stored_in_their_places_alone(backend, case, dtype):
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


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lanes", [16, 8, 4], ids=["AVX-512", "AVX2", "portable"])
def test_every_instruction_set_norms_rotates_and_stores_heads(case, dtype, lanes):
    loaded, reason = csrc_status()
    if not loaded:
        pytest.skip(f"csrc: {reason}")
    given = heads(*HEADS[case])
    plain, exact, ours = given.to(dtype), given.to(dtype).to(torch.float64), given.to(dtype)
    norm = ours.norm
    weights = (None, None, None, 0.0, False)
    if norm is not None:
        weights = (norm.query_weight, norm.key_weight, norm.means_B2, norm.eps, norm.by_head)
    with nan_filled_empty():
        found = torch.ops.synpro_csrc.store_heads(*ours[:-1], *weights, lanes)
    rounded, truth = store_heads_definition(plain), store_heads_definition(exact)
    assert_as_accurate(found, rounded, truth, f"{case}: query")
    assert_as_accurate(ours.key_PnTh, plain.key_PnTh, exact.key_PnTh, f"{case}: key")
    assert torch.equal(ours.value_PnTh, plain.value_PnTh)


def test_a_place_beyond_the_pages_is_refused(backend):
    if backend == "cuda":
        pytest.skip("a device's kernel asks nothing")
    given = heads(*HEADS["grouped, full width"])
    for wrong in ({"page_B": given.page_B + len(given.key_PnTh)}, {"time_B": given.time_B + given.key_PnTh.shape[2]}):
        with pytest.raises(IndexError):
            store_heads(*given._replace(**wrong))


def test_mean_squares_of_other_ranks_heads_take_the_place_of_a_row_s_own(backend):
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
