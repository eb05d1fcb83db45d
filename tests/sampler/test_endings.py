"""Stop strings, loops, limits of single prompts and biases: where completions end, with exact probabilities."""

from collections.abc import Sequence

import pytest
import torch

from synpro_engine.config import UserError, load_config
from synpro_engine.model.model import Model
from synpro_engine.rl.policy import sampled_logprobs
from synpro_engine.sampler import Completion, Sampler, SamplerConfig, SamplingConfig
from synpro_engine.sampler.endings import Endings, LoopWatch

NEVER = frozenset[int]()
PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9]]


def text_of(ids: Sequence[int]) -> str:
    """Two letters for most ids, one for some, none for others."""
    return "".join(
        "" if i % 7 == 0 else chr(97 + i % 26) if i % 5 == 0 else chr(97 + i % 26) + chr(97 + i // 26) for i in ids
    )


def sample(
    model: Model,
    sampling: SamplingConfig,
    config: SamplerConfig | None = None,
    max_new_tokens: Sequence[int] | None = None,
) -> list[Completion]:
    sampler = Sampler(model, config, text_of)
    groups = sampler.generate(
        PROMPTS,
        group_size=4,
        sampling=sampling,
        stop_ids=NEVER,
        seeds=[1, 2, 3],
        vocab_limit=90,
        max_new_tokens=max_new_tokens,
    )
    assert sampler.looped == sum(completion.looped for group in groups for completion in group)
    return [completion for group in groups for completion in group]


@pytest.mark.parametrize("speculate", [0, 4])
def test_a_string_ends_a_completion_with_the_token_that_completes_it(model: Model, speculate: int) -> None:
    free = SamplingConfig(temperature=0.9, top_p=0.9, max_new_tokens=40)
    texts = [text_of(completion.token_ids) for completion in sample(model, free)]
    # Strings that begin and end within tokens.
    stop = (texts[0][21:24], texts[5][11:16], "never~")
    ended = sample(model, free.model_copy(update={"stop": stop}), SamplerConfig(speculate=speculate))
    assert sum(completion.stopped_by is not None for completion in ended) >= 2
    for completion, whole in zip(ended, sample(model, free), strict=True):
        ids = completion.token_ids
        assert ids == whole.token_ids[: len(ids)] and completion.logprobs == pytest.approx(
            whole.logprobs[: len(ids)], abs=2e-5
        )
        assert not any(one in text_of(ids[:-1]) for one in stop)
        assert completion.finished == any(one in text_of(ids) for one in stop)
        if completion.finished:
            assert completion.stopped_by in text_of(ids)
        else:
            assert len(ids) == 40


def test_strings_are_found_behind_tokens_without_text_and_the_first_one_counts() -> None:
    endings = Endings(texts=("ab", "bc"), text_of=lambda ids: "".join(chr(i) if i else "" for i in ids))
    assert endings.stopped_by([ord("x"), ord("a"), *[0] * 100, ord("b")]) == "ab"
    assert endings.stopped_by([ord(letter) for letter in "xabc"]) == "ab"
    assert endings.stopped_by([ord(letter) for letter in "xb"]) is None


def test_a_string_is_found_however_much_its_last_token_says_behind_it() -> None:
    pieces = [*"Question", ":" + "\n" * 16, "", "tion:" + " " * 40]
    endings = Endings(texts=("Question:",), text_of=lambda ids: "".join(pieces[i] for i in ids))
    for ids in ([*range(9)], [0, *[9] * 20, *range(1, 9)], [0, 1, 2, 3, *[9] * 10, 10]):
        assert endings.stopped_by(ids) == "Question:" and endings.stopped_by(ids[:-1]) is None


def test_a_loop_is_a_run_that_comes_three_times() -> None:
    def ends_at(ids: Sequence[int], tokens: int = 12) -> int | None:
        watch = LoopWatch(tokens)
        return next((at for at, token in enumerate(ids, 1) if watch.note(token)), None)

    assert ends_at([7] * 30) == 12
    assert ends_at([1, 2, 3, *[4, 5, 6] * 9]) == 15
    assert ends_at([1, 2, 3, 4] * 9) == 12
    assert ends_at([1, 2, 3, 4, 5] * 9) is None, "a run longer than a third"
    assert ends_at([1, 2, 1, 3, 1, 2, 1, 4] * 9) is None
    assert ends_at([*range(20), *[8, 9] * 5, 8, 1, *[8, 9] * 6]) == 20 + 12 + 12


def test_a_completion_that_loops_is_ended_and_told(model: Model) -> None:
    cold = SamplingConfig(temperature=0.01, max_new_tokens=100, logit_bias={"11": 30.0})
    ended = sample(model, cold.model_copy(update={"loop_tokens": 15}))
    assert all(completion.looped and not completion.finished for completion in ended)
    assert all(len(completion.token_ids) == 15 for completion in ended)
    assert not any(completion.looped for completion in sample(model, cold))


def test_each_prompt_may_have_a_limit_of_its_own(model: Model) -> None:
    sampling = SamplingConfig(max_new_tokens=30)
    by_prompt = sample(model, sampling, max_new_tokens=[4, 9, 1])
    assert [len(completion.token_ids) for completion in by_prompt[::4]] == [4, 9, 1]
    by_ratio = sample(model, sampling.model_copy(update={"max_new_ratio": 2.5}))
    assert [len(completion.token_ids) for completion in by_ratio[::4]] == [12, 7, 17]


@pytest.mark.parametrize("cut", [{}, {"top_p": 0.8}, {"top_k": 5, "min_p": 0.01}], ids=str)
def test_biased_draws_have_the_trainers_probabilities(model: Model, cut: dict[str, float]) -> None:
    biases = {"3": 2.5, "40": -3.0, "89": 1.0}
    sampling = SamplingConfig.model_validate({"temperature": 0.8, "max_new_tokens": 15, "logit_bias": biases, **cut})
    completions = sample(model, sampling, SamplerConfig(speculate=3))
    assert any(3 in completion.token_ids for completion in completions)
    for index, completion in enumerate(completions):
        prompt, answer = PROMPTS[index // 4], completion.token_ids
        with torch.no_grad():
            hidden = model.hidden(torch.tensor([prompt + answer[:-1]]))
            labels = torch.tensor([[-100] * (len(prompt) - 1) + answer])
            found = sampled_logprobs(
                model, hidden, labels, completion.nuclei, temperature=0.8, vocab_limit=90, biases=sampling.biases
            ).logprob
            logits = (hidden[0, len(prompt) - 1 :] @ model.output_weight().T)[:, :90].double()
        torch.testing.assert_close(found, torch.tensor(completion.logprobs), rtol=0, atol=2e-5)
        for key, bias in sampling.biases.items():
            logits[:, key] += bias
        full = torch.log_softmax(logits / 0.8, -1)[torch.arange(len(answer)), answer]
        torch.testing.assert_close(torch.tensor(completion.full_logprobs).double(), full, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stop": ["a", ""]}, "`stop`: .*empty string"),
        ({"loop_tokens": 5}, "`loop_tokens`.*at least 12"),
        ({"logit_bias": {"x": 1.0}}, "`logit_bias`.*`x` is no token id"),
        ({"logit_bias": {"3": 1000.0}}, "`logit_bias.3`"),
        ({"max_new_ratio": 0.0}, "`max_new_ratio`"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_by_their_key(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(SamplingConfig, settings)


def test_settings_that_the_model_cannot_have_are_refused_by_their_key(model: Model) -> None:
    with pytest.raises(UserError, match=r"`sampling.logit_bias`: there is no token 90; the vocabulary has 90"):
        sample(model, SamplingConfig(logit_bias={"90": 1.0}))
    with pytest.raises(UserError, match=r"`sampling.stop`"):
        Sampler(model).generate(
            PROMPTS, group_size=1, sampling=SamplingConfig(stop=["a"]), stop_ids=NEVER, seeds=[0, 1, 2]
        )


def test_what_is_recorded_reads_back_alike() -> None:
    given = load_config(SamplingConfig, {"logit_bias": {7: 1.5}, "stop": ["\n\n"]})
    assert given.recorded()["logit_bias"] == {"7": 1.5} and given.biases == {7: 1.5}
    assert load_config(SamplingConfig, given.model_dump(mode="json")) == given
