"""Whether a server has the weights that it should: its greedy answers against those of the model in this process.

A server that was started from other weights answers as readily, and nothing else would ever tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from synpro_engine.config import UserError
from synpro_engine.remote import Calls
from synpro_engine.sampler import Sampler, SamplingConfig
from synpro_engine.synth.prompting import Prompter
from synpro_engine.synth.served.config import KEY
from synpro_engine.synth.served.generator import PATH, Request, ServedGenerator

_TEXTS = (
    "The tide comes in twice a day, and the harbour is deepest an hour after noon. Boats wait for it at the bar.",
    "In 1848 the assembly met in the old church, for the hall had burnt down; 212 members came, and few agreed.",
    "Water boils at a lower temperature on a mountain, because the air above it weighs less and presses less.",
    "She asked for the ledger, turned to the last page, and saw that somebody had torn out the entries for May.",
    "A compiler turns the source of a program into instructions, and tells of each place that it cannot read.",
    "Bees visit apple trees in the morning. Where there are none, growers rent hives for two weeks in spring.",
)
_TOKENS = 24
_LEAST_EQUAL = 0.5
"""Share of greedy tokens that must be equal up to where two answers part: near ties may fall to either side."""


class OtherWeights(UserError):
    """The server answers as another model does."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the model answers greedily to one prompt; log-probabilities in nats."""

    prompt: list[int]
    token_ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near a server's answers are."""

    equal: float
    """Share of the tokens up to where answers part."""
    difference: float | None
    """Mean distance of log-probabilities, in nats; None where the server gives none."""

    def __str__(self) -> str:
        said = f"{self.equal:.0%} of its greedy tokens are the same"
        return said if self.difference is None else f"{said}, log-probabilities differ by {self.difference:.4f}"


def expected_answers(sampler: Sampler, prompter: Prompter, vocab_limit: int) -> list[Expected]:
    """Greedy answers of the model in this process to a few prompts. Collective over tensor-parallel ranks."""
    prompts = [prompt for prompt in map(prompter.ask, _TEXTS) if len(prompt) < sampler.max_prompt_tokens]
    groups = sampler.generate(
        prompts, group_size=1, sampling=_greedy(), stop_ids=prompter.stop_ids, seeds=[0] * len(prompts),
        vocab_limit=vocab_limit,
    )  # fmt: skip
    return [
        Expected(prompt=prompt, token_ids=group[0].token_ids, logprobs=group[0].full_logprobs)
        for prompt, group in zip(prompts, groups, strict=True)
    ]


def _greedy() -> SamplingConfig:
    return SamplingConfig(temperature=0.0, max_new_tokens=_TOKENS)


def check_weights(
    server: ServedGenerator, expected: Sequence[Expected], stop_ids: frozenset[int], vocab_limit: int
) -> Agreement:
    """How near the server's answers are to the expected ones; OtherWeights where they are another model's."""
    requests = [
        Request(
            prompt=one.prompt, seed=0, max_tokens=len(one.token_ids), sampling=_greedy(), stop_ids=stop_ids,
            vocab_limit=vocab_limit,
        )
        for one in expected
    ]  # fmt: skip

    def answer(calls: Calls[int, tuple[list[int], list[float]]], number: int) -> tuple[list[int], list[float]] | None:
        request = requests[number]

        def read(reply: Mapping[str, Any]) -> tuple[list[int], list[float]] | None:
            ids = server.read(request, reply)
            return None if ids is None else (ids, _logprobs(reply))

        return calls.ask(PATH, server.encoded(request, logprobs=1), read)

    answers = server.service.each(range(len(requests)), answer)
    found = [server.fail() if one is None else one for one in answers.values()]
    agreement = _agreement(expected, found)
    far = agreement.difference is not None and agreement.difference > server.config.tolerance
    if far or agreement.equal < _LEAST_EQUAL:
        raise OtherWeights(
            f"`{KEY}`: {server.config.endpoint} serves `{server.model}` with other weights than this stage's:"
            f" {agreement} (`tolerance` {server.config.tolerance:g}); start it anew from the exported folder"
        )
    return agreement


def _agreement(expected: Sequence[Expected], found: Sequence[tuple[list[int], list[float]]]) -> Agreement:
    same, differences = 0, list[float]()
    for one, (ids, logprobs) in zip(expected, found, strict=True):
        pairs = zip(one.token_ids, ids, strict=False)
        equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        same += equal
        # And the token at which they part: of a near tie both are as likely.
        differences += [abs(a - b) for a, b in list(zip(one.logprobs, logprobs, strict=False))[: equal + 1]]
    tokens = sum(len(one.token_ids) for one in expected)
    mean = sum(differences) / len(differences) if differences else None
    return Agreement(equal=same / tokens, difference=mean)


def _logprobs(reply: Mapping[str, Any]) -> list[float]:
    """Of the answer's tokens; empty where the server gives none, or in another form."""
    try:
        return [float(value) for value in reply["choices"][0]["logprobs"]["token_logprobs"]]
    except (KeyError, IndexError, TypeError, ValueError):
        return []
