"""Drawing from logits: the right ids, the right frequencies, the right log-probabilities."""

import math

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from synpro_engine.sampler import SamplingConfig
from synpro_engine.sampler.sampling import draw, nucleus, uniforms
from synpro_kernels import inverse_cdf


def logits_of(rows: int, vocab: int, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


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
        assert inverse_cdf(weights, torch.tensor([uniform], dtype=torch.float64)).item() == expected


@pytest.mark.parametrize("cut", [{}, {"top_p": 0.7}, {"top_k": 5}, {"min_p": 0.2}], ids=str)
def test_tokens_come_as_often_as_their_log_probability_says(cut: dict[str, float]) -> None:
    n = 40000
    logits = logits_of(1, 12, scale=1.0).expand(n, -1)
    sampling = SamplingConfig.model_validate({"temperature": 1.3, **cut})
    drawn = draw(logits, sampling, uniforms([1] * n, list(range(n)), [0] * n))
    for token in drawn.token_B.unique():
        chosen = drawn.token_B == token
        expected = float(drawn.logprob_B[chosen][0].exp())
        assert abs(float(chosen.double().mean()) - expected) < 4.5 * math.sqrt(expected * (1 - expected) / n)


def test_the_nucleus_is_the_smallest_set_of_likely_ids_that_reaches_top_p() -> None:
    # Rows from peaked to flat: the flat ones need several rounds of looking at more candidates.
    logits = torch.cat([logits_of(2, 3000, scale) for scale in (8.0, 3.0, 0.5)])
    prob = torch.softmax(logits, -1)
    cut = nucleus(prob, 0.9)
    rows = cut.ids.split(cut.counts_B.tolist())
    for row, (ids, p) in enumerate(zip(rows, prob, strict=True)):
        assert ids.tolist() == sorted(set(ids.tolist()))
        assert p[ids].double().sum() >= 0.9 > p[ids].double().sum() - p[ids].min()
        outside = torch.ones_like(p, dtype=torch.bool).index_fill(0, ids, False)
        assert p[outside].max() < p[ids].min()
        assert torch.equal(cut.prob_BK[row, : len(ids)], p[ids])


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
    drawn = draw(logits, sampling, uniforms([3] * len(logits), range(len(logits)), [0] * len(logits)))
    assert drawn.nucleus_ids is not None and drawn.nucleus_counts_B is not None
    for row, ids in enumerate(drawn.nucleus_ids.split(drawn.nucleus_counts_B.tolist())):
        assert ids.tolist() == scores[row].isfinite().nonzero()[:, 0].tolist()
    expected = torch.log_softmax(scores.double(), -1).gather(1, drawn.token_B[:, None])[:, 0]
    torch.testing.assert_close(drawn.logprob_B.double(), expected, rtol=0, atol=2e-6)


def test_ids_as_likely_as_the_last_one_of_a_nucleus_belong_to_it_too() -> None:
    prob = torch.tensor([[0.1, 0.3, 0.1, 0.3, 0.1, 0.1]])
    assert nucleus(prob, 0.65).ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert nucleus(prob, 0.35).ids.tolist() == [1, 3]


def test_log_probabilities_are_those_of_the_renormalised_nucleus() -> None:
    logits, sampling = logits_of(6, 500), SamplingConfig(temperature=0.8, top_p=0.8)
    drawn = draw(logits, sampling, uniforms([3] * 6, list(range(6)), [0] * 6))
    assert drawn.nucleus_ids is not None and drawn.nucleus_counts_B is not None
    full = torch.log_softmax(logits.double() / 0.8, -1)
    for row, ids in enumerate(drawn.nucleus_ids.split(drawn.nucleus_counts_B.tolist())):
        token = int(drawn.token_B[row])
        assert token in ids.tolist()
        expected = torch.log_softmax(logits[row, ids].double() / 0.8, -1)[ids.tolist().index(token)]
        assert abs(float(drawn.logprob_B[row] - expected)) < 2e-6
        assert abs(float(drawn.full_logprob_B[row] - full[row, token])) < 2e-6


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(top_p=0.99), SamplingConfig(temperature=0.0)])
def test_ids_beyond_the_vocabulary_limit_do_not_exist(sampling: SamplingConfig) -> None:
    logits = logits_of(50, 40)
    logits[:, 30:] += 20.0
    uniform = uniforms([1] * 50, list(range(50)), [0] * 50)
    limited, cut = draw(logits, sampling, uniform, vocab_limit=30), draw(logits[:, :30], sampling, uniform)
    assert torch.equal(limited.token_B, cut.token_B) and torch.equal(limited.full_logprob_B, cut.full_logprob_B)


def test_temperature_zero_takes_the_most_likely_token_for_certain() -> None:
    logits = logits_of(5, 100)
    drawn = draw(logits, SamplingConfig(temperature=0.0, top_p=0.5), torch.full((5,), 0.99, dtype=torch.float64))
    assert torch.equal(drawn.token_B, logits.argmax(-1))
    assert drawn.logprob_B.tolist() == [0.0] * 5
    assert torch.allclose(drawn.full_logprob_B, torch.log_softmax(logits, -1).amax(-1))


def test_equal_probabilities_in_fp32_do_not_mislead_greedy() -> None:
    # The two largest logits differ by less than their probabilities can show.
    logits = torch.full((1, 4), -200.0)
    logits[0, 1], logits[0, 3] = 1.0, 1.0 + 2**-23
    assert draw(logits, SamplingConfig(temperature=0.0), torch.zeros(1, dtype=torch.float64)).token_B.item() == 3
