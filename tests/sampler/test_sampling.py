"""Drawing from logits: the right ids, the right frequencies, the right log-probabilities."""

import math
from typing import Any

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from synpro_engine.sampler import SamplingConfig
from synpro_engine.sampler.sampling import NO_ID, Draw, Nucleus, draw, nucleus, uniforms
from synpro_kernels import inverse_cdf


def logits_of(rows: int, vocab: int, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def kept(cut: Nucleus | None) -> list[list[int]]:
    assert cut is not None and not cut.short_B.any()
    return [[token for token in row if token != NO_ID] for row in cut.id_BK.tolist()]


def draw_of(logits: torch.Tensor, sampling: SamplingConfig, uniform: torch.Tensor, limit: int | None = None) -> Draw:
    return draw(logits, sampling, uniform, limit, width=logits.shape[-1])


def test_uniforms_depend_on_seed_member_and_position_alone() -> None:
    together = uniforms([7, 7, 8, 7], [0, 1, 0, 0], [5, 5, 5, 6])
    alone = [uniforms([s], [m], [p])[0] for s, m, p in ((7, 0, 5), (7, 1, 5), (8, 0, 5), (7, 0, 6))]
    assert together.tolist() == [float(u) for u in alone]
    assert len(set(together.tolist())) == 4


def test_uniforms_accept_64_bit_seeds_and_look_uniform() -> None:
    draws = uniforms([2**64 - 1] * 20000, list(range(20000)), [3] * 20000)
    assert draws.min() >= 0.0 and draws.max() < 1.0
    counts = torch.histc(draws, bins=20, min=0.0, max=1.0)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 45.0  # chi-square, 19 degrees of freedom: p = 0.0007


def test_the_inverse_cdf_gives_each_id_its_slice_and_never_an_impossible_one() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]])
    just_below_one = math.nextafter(1.0, 0.0)
    for uniform, expected in ((0.0, 1), (0.2499, 1), (0.2501, 3), (just_below_one, 3)):
        column, total = inverse_cdf(weights, torch.tensor([uniform], dtype=torch.float64))
        assert (column.item(), total.item()) == (expected, 4.0)


@pytest.mark.parametrize("cut", [{}, {"top_p": 0.7}, {"top_k": 5}, {"min_p": 0.2}], ids=str)
def test_tokens_come_as_often_as_their_log_probability_says(cut: dict[str, float]) -> None:
    n = 40000
    logits = logits_of(1, 12, scale=1.0).expand(n, -1)
    sampling = SamplingConfig.model_validate({"temperature": 1.3, **cut})
    drawn = draw_of(logits, sampling, uniforms([1] * n, list(range(n)), [0] * n))
    for token in drawn.token_B.unique():
        chosen = drawn.token_B == token
        expected = float(drawn.logprob_B[chosen][0].exp())
        assert abs(float(chosen.double().mean()) - expected) < 4.5 * math.sqrt(expected * (1 - expected) / n)


def test_the_nucleus_is_the_smallest_set_of_likely_ids_that_reaches_top_p() -> None:
    logits = torch.cat([logits_of(2, 3000, scale) for scale in (8.0, 3.0, 0.5)])
    prob = torch.softmax(logits, -1)
    cut = nucleus(prob, 0.9, width=3000)
    for row, (its, p) in enumerate(zip(kept(cut), prob, strict=True)):
        assert its == sorted(set(its))
        ids = torch.tensor(its)
        assert p[ids].double().sum() >= 0.9 > p[ids].double().sum() - p[ids].min()
        outside = torch.ones_like(p, dtype=torch.bool).index_fill(0, ids, False)
        assert p[outside].max() < p[ids].min()
        assert torch.equal(cut.prob_BK[row][cut.prob_BK[row] > 0], p[ids])


CUTS = [
    {"top_p": 0.9}, {"top_k": 7}, {"min_p": 0.05}, {"top_p": 0.8, "top_k": 50}, {"top_k": 1}, {"top_k": 9999},
    {"top_p": 0.95, "top_k": 300, "min_p": 0.01}, {"top_p": 0.9999}, {"min_p": 0.99},
]  # fmt: skip


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_nucleus_looked_for_among_few_ids_is_that_of_all_or_is_told_to_be_short(
    cut: dict[str, Any], dtype: torch.dtype
) -> None:
    """Rows from peaked to flat; in bf16 with ties at every border. And the draws behind are alike to the last bit."""
    logits = torch.cat([logits_of(3, 900, scale) for scale in (9.0, 3.0, 1.0, 0.1)]).to(dtype)
    sampling, uniform = SamplingConfig.model_validate(cut), uniforms([1] * 12, range(12), [0] * 12)
    whole = draw(logits, sampling, uniform, width=900)
    assert whole.nucleus is not None
    rows = kept(whole.nucleus)
    for width in (cut.get("top_k", 0) + 1, 16, 64, 512, 899):
        if width <= cut.get("top_k", 0):
            continue
        drawn = draw(logits, sampling, uniform, width=width)
        assert drawn.nucleus is not None
        enough = ~drawn.nucleus.short_B
        for row in enough.nonzero()[:, 0].tolist():
            assert [token for token in drawn.nucleus.id_BK[row].tolist() if token != NO_ID] == rows[row]
        for name in ("token_B", "logprob_B", "full_logprob_B"):
            assert torch.equal(getattr(drawn, name)[enough], getattr(whole, name)[enough])
        for row, its in enumerate(rows):
            assert not (len(its) < width and drawn.nucleus.short_B[row]), "room for it, and for one that is out"


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 7}, {"min_p": 0.05}, {"top_k": 50, "top_p": 0.8}, {"top_k": 1}, {"top_k": 9999, "top_p": 0.9},
        {"top_k": 300, "top_p": 0.95, "min_p": 0.01, "temperature": 0.7}, {"min_p": 0.99},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_kept_is_what_transformers_keeps(settings: dict[str, float]) -> None:
    logits = torch.cat([logits_of(3, 900, scale) for scale in (6.0, 2.0, 0.5)])
    sampling = SamplingConfig.model_validate(settings)
    scores = logits / sampling.temperature
    for warper in (
        TopKLogitsWarper(sampling.top_k) if sampling.top_k else None,
        TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1.0 else None,
        MinPLogitsWarper(sampling.min_p) if sampling.min_p else None,
    ):
        scores = scores if warper is None else warper(torch.zeros(len(logits), 1, dtype=torch.long), scores)
    drawn = draw_of(logits, sampling, uniforms([3] * len(logits), range(len(logits)), [0] * len(logits)))
    for row, ids in enumerate(kept(drawn.nucleus)):
        assert ids == scores[row].isfinite().nonzero()[:, 0].tolist()
    expected = torch.log_softmax(scores.double(), -1).gather(1, drawn.token_B[:, None])[:, 0]
    torch.testing.assert_close(drawn.logprob_B.double(), expected, rtol=0, atol=2e-6)


def test_ids_as_likely_as_the_last_one_of_a_nucleus_belong_to_it_too() -> None:
    prob = torch.tensor([[0.1, 0.3, 0.1, 0.3, 0.1, 0.1]])
    assert kept(nucleus(prob, 0.65, width=6)) == [[0, 1, 2, 3, 4, 5]]
    assert kept(nucleus(prob, 0.35, width=6)) == [[1, 3]]
    assert nucleus(prob, 0.65, width=5).short_B.all(), "one more is as likely"


def test_log_probabilities_are_those_of_the_renormalised_nucleus() -> None:
    logits, sampling = logits_of(6, 500), SamplingConfig(temperature=0.8, top_p=0.8)
    drawn = draw_of(logits, sampling, uniforms([3] * 6, list(range(6)), [0] * 6))
    full = torch.log_softmax(logits.double() / 0.8, -1)
    for row, ids in enumerate(kept(drawn.nucleus)):
        token = int(drawn.token_B[row])
        assert token in ids
        expected = torch.log_softmax(logits[row, ids].double() / 0.8, -1)[ids.index(token)]
        assert abs(float(drawn.logprob_B[row] - expected)) < 2e-6
        assert abs(float(drawn.full_logprob_B[row] - full[row, token])) < 2e-6


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(top_p=0.99), SamplingConfig(temperature=0.0)])
def test_ids_beyond_the_vocabulary_limit_do_not_exist(sampling: SamplingConfig) -> None:
    logits = logits_of(50, 40)
    logits[:, 30:] += 20.0
    uniform = uniforms([1] * 50, list(range(50)), [0] * 50)
    limited, cut = draw_of(logits, sampling, uniform, 30), draw_of(logits[:, :30], sampling, uniform)
    assert torch.equal(limited.token_B, cut.token_B) and torch.equal(limited.full_logprob_B, cut.full_logprob_B)


def test_temperature_zero_takes_the_most_likely_token_for_certain() -> None:
    logits = logits_of(5, 100)
    drawn = draw_of(logits, SamplingConfig(temperature=0.0, top_p=0.5), torch.full((5,), 0.99, dtype=torch.float64))
    assert torch.equal(drawn.token_B, logits.argmax(-1))
    assert drawn.logprob_B.tolist() == [0.0] * 5
    assert torch.allclose(drawn.full_logprob_B, torch.log_softmax(logits, -1).amax(-1))


def test_equal_probabilities_in_fp32_do_not_mislead_greedy() -> None:
    # The two largest logits differ by less than their probabilities can show.
    logits = torch.full((1, 4), -200.0)
    logits[0, 1], logits[0, 3] = 1.0, 1.0 + 2**-23
    assert draw_of(logits, SamplingConfig(temperature=0.0), torch.zeros(1, dtype=torch.float64)).token_B.item() == 3
