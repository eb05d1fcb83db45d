"""Reading a completion: the text and the ids that stand for it."""

import dataclasses
from collections.abc import Sequence

import pytest

from synpro_engine.config import UserError, load_config
from synpro_engine.sampler import Completion
from synpro_engine.synth import Candidate, GenerateConfig, PromptConfig, Prompter, operation_named

SENTENCE = "The treasury is sound and the harvest was good."
END, UNKNOWN = 0, 1


class _Letters:
    """A tokenizer of code points; id 0 ends a text, id 1 has no letter."""

    vocab_size, eos_id, pad_id, fingerprint = 0x110000, END, END, "letters"

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids if i not in (END, UNKNOWN))


def _completion(text: str, *, finished: bool) -> Completion:
    ids = [*_Letters().encode(text), *([END] if finished else [])]
    zeros = [0.0] * len(ids)
    return Completion(token_ids=ids, logprobs=zeros, full_logprobs=zeros, nuclei=None, finished=finished)


def _read(completion: Completion, prompt: PromptConfig = PromptConfig()) -> Candidate:  # noqa: B008
    return Prompter(operation_named("rephrase"), _Letters(), prompt).read("source", completion)


def test_the_ids_of_an_answer_are_those_of_its_text_and_not_those_that_were_sampled() -> None:
    letters, prompt = _Letters(), PromptConfig(keep_truncated=True)
    for text, finished in ((SENTENCE, True), (SENTENCE, False), (f"\n{SENTENCE}\n", True)):
        candidate = _read(_completion(text, finished=finished), prompt)
        assert candidate.parsed.ok
        assert candidate.token_ids == tuple(letters.encode(SENTENCE))


def test_an_id_that_decodes_to_nothing_is_not_among_the_ids_of_the_text() -> None:
    whole = _completion(SENTENCE, finished=True)
    ids = [*whole.token_ids[:5], UNKNOWN, *whole.token_ids[5:]]
    zeros = [0.0] * len(ids)
    odd = dataclasses.replace(whole, token_ids=ids, logprobs=zeros, full_logprobs=zeros)
    candidate = _read(odd)
    assert candidate.parsed.ok and candidate.parsed.text == SENTENCE
    assert candidate.token_ids == tuple(_Letters().encode(SENTENCE))


def test_a_refused_completion_has_no_ids() -> None:
    completion = _completion(SENTENCE, finished=False)
    candidate = _read(completion)
    assert not candidate.parsed.ok and candidate.token_ids is None


def test_a_text_ends_before_the_string_that_stopped_it() -> None:
    """Whatever else the last token brought, and though the prefill may have the string."""
    prefill = operation_named("rephrase").prefill
    for stop in ("###", prefill[-3:]):
        drawn = _completion(f"{SENTENCE}{stop}{stop[-1]}", finished=False)
        candidate = _read(dataclasses.replace(drawn, finished=True, stopped_by=stop))
        assert candidate.parsed.ok and candidate.parsed.text == SENTENCE
        assert candidate.raw == prefill + SENTENCE


@pytest.mark.parametrize("name", ["stop", "loop_tokens", "logit_bias"])
def test_what_a_server_cannot_be_held_to_is_refused_beside_one(name: str) -> None:
    sampling = {"stop": ["x"], "loop_tokens": 40, "logit_bias": {"3": 1.0}}
    given = {"server": {"endpoint": "http://localhost:1/v1"}, "sampling": {name: sampling[name]}}
    with pytest.raises(UserError, match=rf"sampling.{name}: a server's completions"):
        load_config(GenerateConfig, given)
