"""Guesses of the next tokens: they save steps and change nothing, neither a token nor its probability."""

import itertools
import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from synpro_engine.model.model import Model
from synpro_engine.sampler import Completion, Sampler, SamplerConfig, SamplingConfig
from synpro_engine.sampler.batch import LiveSequence
from synpro_engine.sampler.speculate import Drafter, least_hope, pairs_of

STOPS = frozenset(range(0, 90, 13))
WAYS = [
    {"temperature": 0.0}, {"temperature": 0.4}, {"temperature": 0.5, "top_p": 0.8}, {"temperature": 0.5, "top_k": 6},
    {"temperature": 0.6, "min_p": 0.05, "top_p": 0.95},
]  # fmt: skip


def repeating(count: int) -> list[list[int]]:
    """Prompts of several lengths whose parts come back, as a text's do whose sentences are numbered."""
    generator = torch.Generator().manual_seed(8)
    parts = [torch.randint(90, (length,), generator=generator).tolist() for length in (7, 3, 9, 5)]
    return [(parts[i % 4] + parts[(i + 1) % 4] + parts[i % 4]) * (1 + i % 3) for i in range(count)]


Guess = Callable[[LiveSequence], list[int]]


@pytest.fixture
def guess(monkeypatch: pytest.MonkeyPatch) -> Callable[[Guess], None]:
    """Sets what is guessed, so that right and wrong guesses come at will; no further than there is room."""

    def set_guess(guess: Guess) -> None:
        monkeypatch.setattr(
            LiveSequence, "draft", lambda its, most, _: guess(its)[: min(most, its.room - len(its.token_ids) - 1)]
        )

    return set_guess


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_tokens_their_probabilities_and_nuclei_are_those_without_guesses(
    model: Model, guess: Callable[[Guess], None], way: dict[str, float]
) -> None:
    """Also where groups join others that are half done, and a sequence ends within what was guessed."""
    prompts, sampling = repeating(6), SamplingConfig.model_validate({"max_new_tokens": 40, **way})

    def sample(config: SamplerConfig) -> tuple[Sampler, list[Completion]]:
        sampler = Sampler(model, config)
        groups = sampler.generate(
            prompts, group_size=3, sampling=sampling, stop_ids=STOPS, seeds=range(6), vocab_limit=90
        )
        return sampler, [completion for group in groups for completion in group]

    slow, plain = sample(SamplerConfig(max_batch=7))

    def mostly_right(its: LiveSequence) -> list[int]:
        """What will be drawn, of various lengths, and beyond the end something; every fifth token is wrong."""
        drawn, at = plain[3 * its.prompt + its.member].token_ids, len(its.token_ids)
        coming = [*drawn, 1, 2, 3, 4, 5][at : at + at % 6]
        return [token if (at + more) % 5 else token ^ 1 for more, token in enumerate(coming)]

    guess(mostly_right)
    fast, guessing = sample(SamplerConfig(max_batch=7, speculate=5))
    assert fast.stats.drafted > fast.stats.kept > 0
    assert fast.stats.steps < slow.stats.steps
    assert fast.stats.new_tokens == slow.stats.new_tokens == sum(len(one.token_ids) for one in plain)
    assert (slow.stats.drafted, slow.drafted) == (0, 0) and fast.drafted == fast.stats.drafted
    for ours, theirs in zip(guessing, plain, strict=True):
        assert ours.token_ids == theirs.token_ids and ours.finished == theirs.finished
        for name in ("logprobs", "full_logprobs"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=2e-5)
        if theirs.nuclei is None:
            assert ours.nuclei is None
        else:
            assert ours.nuclei is not None and torch.equal(ours.nuclei.offsets, theirs.nuclei.offsets)
            assert torch.equal(ours.nuclei.ids, theirs.nuclei.ids)


def test_completions_come_as_often_as_the_model_says_where_guesses_are_fed(
    model: Model, guess: Callable[[Guess], None]
) -> None:
    """Chi-squared over all completions of four of five ids, against probabilities from whole forwards."""
    vocab, length, drawn = 5, 4, 4000
    sampling = SamplingConfig(temperature=3.0, top_p=0.9, max_new_tokens=length)
    prompt = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    guess(lambda its: [its.member % vocab, its.token_ids[-1]])
    sampler = Sampler(model, SamplerConfig(speculate=2))
    (group,) = sampler.generate(
        [prompt], group_size=drawn, sampling=sampling, stop_ids=frozenset(), seeds=[7], vocab_limit=vocab
    )
    assert sampler.stats.drafted - sampler.stats.kept > sampler.stats.kept > drawn / 10
    all_ids = list(itertools.product(range(vocab), repeat=length))
    log_probability = _log_probabilities(model, prompt, torch.tensor(all_ids), sampling)
    expected = dict(zip(all_ids, (log_probability.exp() * drawn).tolist(), strict=True))
    assert sum(expected.values()) == pytest.approx(drawn)
    for completion in group[:200]:
        ids = tuple(completion.token_ids)
        assert sum(completion.logprobs) == pytest.approx(math.log(expected[ids] / drawn), abs=1e-4)
    seen = Counter(tuple(completion.token_ids) for completion in group)
    assert all(expected[ids] > 0.0 for ids in seen)
    common = [ids for ids in all_ids if expected[ids] >= 5.0]
    cells = [(seen[ids], expected[ids]) for ids in common]
    cells.append((drawn - sum(n for n, _ in cells), drawn - sum(e for _, e in cells)))
    chi_squared = sum((n - e) ** 2 / e for n, e in cells if e > 0.0)
    freedom = len(common)
    assert freedom > 20
    assert chi_squared < freedom + 4.0 * math.sqrt(2 * freedom)


@torch.no_grad()
def _log_probabilities(
    model: Model, prompt: list[int], completion_NT: torch.Tensor, sampling: SamplingConfig
) -> torch.Tensor:
    """log p [N] of whole completions under temperature and top-p, fp64; -inf for what is cut off."""
    vocab = int(completion_NT.max()) + 1
    rows = torch.cat((torch.tensor([prompt]).expand(len(completion_NT), -1), completion_NT), 1)
    hidden = model.hidden(rows)[:, len(prompt) - 1 : -1]
    logprob = torch.log_softmax((hidden @ model.output_weight().T)[..., :vocab].double() / sampling.temperature, -1)
    ordered, order = logprob.sort(-1, descending=True)
    behind = ordered.exp().cumsum(-1) - ordered.exp() >= sampling.top_p
    cut = torch.zeros_like(behind).scatter(-1, order, behind)
    kept = torch.log_softmax(logprob.masked_fill(cut, float("-inf")), -1)
    return kept.gather(-1, completion_NT[..., None])[..., 0].sum(-1)


def test_a_guess_is_what_followed_the_longest_match() -> None:
    prompt = [5, 1, 2, 9, 9, 4, 1, 2, 7, 8, 6, 3]
    drafter = Drafter(prompt, pairs_of(prompt))
    assert drafter.draft(4, 0.0) == []
    for token in (4, 1, 2):
        drafter.note(token)
    assert drafter.draft(4, 0.0) == [7, 8, 6, 3]
    drafter.note(7)
    assert drafter.draft(2, 0.0) == [8, 6]
    for token in (50, 51, 52, 50, 51):
        drafter.note(token)
    assert drafter.draft(1, 0.0) == [52], "what the completion said itself comes again too"


def test_trust_goes_with_wrong_guesses_and_comes_back_with_right_ones_that_were_not_fed() -> None:
    prompt = [1, 2, 3, 4] * 8
    drafter, fed = Drafter(prompt, pairs_of(prompt)), list[int]()
    for token in prompt:
        fed.append(len(drafter.draft(4, 0.4)))
        drafter.note(token)
    assert fed[0] < fed[-1] == 4
    for _ in range(10):  # the pair is known, what follows it is another id each time
        for token in (1, 2, 60):
            drafter.note(token)
    drafter.note(1)
    drafter.note(2)
    assert drafter.draft(4, 0.4) in ([], [60, 1, 2]), "the own completion is by now the better source"


def test_many_rows_want_surer_guesses_than_few() -> None:
    hopes = [least_hope(rows, "cpu") for rows in (1, 8, 64)]
    assert hopes == sorted(hopes) and hopes[0] < 0.1 and hopes[-1] > 0.75
    assert least_hope(64, "cuda") < least_hope(64, "cpu")


def test_no_guess_runs_past_the_last_token(model: Model) -> None:
    """A sequence whose repetition could go on: it ends where it may, and the context holds all that is fed."""
    (prompt,) = [[1, 2, 3] * 40]
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=100)
    ways = [
        Sampler(model, config).generate([prompt], group_size=1, sampling=sampling, stop_ids=frozenset(), seeds=[0])
        for config in (SamplerConfig(speculate=5), SamplerConfig())
    ]
    assert ways[0][0][0].token_ids == ways[1][0][0].token_ids
    assert len(ways[0][0][0].token_ids) == 8
