"""A judge's canary: a completion against itself with a fault, by judges of texts and of entries, and what it costs."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from synpro_engine.reward import Candidate, Composer, FormatReward, FunctionReward, Reward
from synpro_engine.reward.agreement import COPY
from synpro_engine.reward.canary import SEES, Canary, Pair, Specimen, figures
from synpro_engine.reward.examples import ENTRY_FAULTS
from synpro_engine.reward.planted import FAULTS
from synpro_engine.synth import REFORMAT, REPHRASE
from tests.reward.judges.conftest import server  # noqa: F401 - a fixture
from tests.reward.test_planted import OTHER, TEXT

SOURCE = "In May a treaty was made with Spain. " + TEXT


def specimen(text: str = TEXT, key: str = "1 0 0") -> Specimen:
    parsed = REPHRASE.parse(f"{REPHRASE.heading}\n{text}")
    return Specimen(Candidate(operation="rephrase", source=SOURCE, raw=text, parsed=parsed), OTHER, key)


def with_entries() -> Specimen:
    raw = REFORMAT.heading + "".join(
        f"\n- Topic: The treaty with Spain. Content: {text}"
        for text in ("It was signed upon the 12th of May by the Secretary.", "It has given 340 miles of Florida to us.")
    )
    parsed = REFORMAT.parse(raw)
    assert parsed.ok and len(parsed.entries) == 2
    return Specimen(Candidate(operation="reformat", source=SOURCE, raw=raw, parsed=parsed), OTHER, "1 0 0")


def encode(text: str) -> list[int]:
    return [*text.encode()]


def looking(*rewards: Reward) -> Canary:
    composer = Composer(rewards, {"rephrase": {reward.name: 1.0 for reward in rewards}})
    return Canary(composer, encode)


class Knows:
    """1 for what was really written, less for anything else; it remembers what it was asked."""

    range = (0.0, 1.0)

    def __init__(self, name: str, known: str = TEXT, seen: float = 0.0) -> None:
        self.name, self._known, self._seen, self.asked = name, known, seen, list[str]()

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        self.asked += [c.parsed.text for c in candidates]
        return [1.0 if c.parsed.text.strip() == self._known.strip() else self._seen for c in candidates]


def test_a_judge_that_sees_all_has_1_and_one_that_is_deceived_by_all_has_a_half() -> None:
    for seen, expected in ((0.0, 1.0), (1.0, 0.5)):
        canary = looking(Knows("own", seen=seen), FormatReward())
        assert canary.names == ("own",), "format judges nothing"
        pairs, asked = canary.look([specimen()])
        found = figures(pairs)["own"]
        assert found.agreement == found.auc == expected and asked == {}
        assert set(found.by_kind) == {*FAULTS} - {"off topic"}, "another text is no fault of this one"
        assert found.pairs == len(FAULTS) - 1


def test_a_planted_candidate_has_all_that_a_reward_of_ones_own_may_read() -> None:
    """Such a function may go by operation, entries and token ids: what it raises ends the tuning."""
    read = list[Candidate]()

    def own(candidate: Candidate) -> float:
        read.append(candidate)
        return len(candidate.parsed.entries) / len(candidate.token_ids or ())

    for one in (specimen(), with_entries()):
        operation = one.candidate.operation
        composer = Composer([FunctionReward("own", own)], {operation: {"own": 1.0}})
        assert Canary(composer, encode).look([one])[0]
        assert {c.operation for c in read} == {operation} and len(read) > 2
        assert all(c.token_ids == tuple(encode(c.parsed.text)) and c.source == SOURCE for c in read)
        assert all(c.parsed.entries == one.candidate.parsed.entries for c in read)
        read.clear()


def test_each_judge_is_shown_the_faults_that_it_is_there_to_see() -> None:
    judges = [Knows(name) for name in ("quality", "similarity", "structure", "anti_copy")]
    pairs, _ = looking(*judges).look([specimen()])
    shown = {name: {pair.kind for pair in pairs if pair.judge == name} for name in SEES}
    assert shown == {name: set(kinds) for name, kinds in SEES.items()}
    assert {kind for kinds in SEES.values() for kind in kinds} <= {*FAULTS, COPY}
    assert all(judge.asked.count(TEXT) == 1 for judge in judges), "the completion itself is judged once"


def test_the_same_key_plants_the_same_faults_and_another_others() -> None:
    def planted(key: str) -> list[str]:
        judge = Knows("own")
        looking(judge).look([specimen(key=key)])
        return judge.asked

    assert planted("1 0 0") == planted("1 0 0") != planted("1 1 0")


def test_a_completion_in_which_nothing_can_be_planted_gives_no_pair() -> None:
    pairs, _ = looking(Knows("quality")).look([specimen("One."), specimen("")])
    assert pairs == [] and figures(pairs) == {}
    assert figures([Pair("a", "loop", math.nan, 0.1)]) == {}
    found = figures(
        [Pair("a", "loop", 0.5, 0.1), Pair("a", "omission", 0.3, 0.4), Pair("a", "omission", 0.3, math.nan)]
    )
    assert (
        found["a"].agreement == 0.5 and found["a"].auc == 0.75 and found["a"].by_kind == {"loop": 1.0, "omission": 0.0}
    )


def test_a_judge_of_entries_is_shown_one_of_them_and_what_it_answered_before_costs_nothing(
    server: Any,  # noqa: F811
) -> None:
    def choose(instructions: str, names: list[str]) -> list[float]:
        true = any(f"<entry>\n{entry}\n</entry>" in instructions for entry in with_entries().candidate.parsed.entries)
        return [0.8, 0.1, 0.1] if true else [0.2, 0.4, 0.4]

    server.answer = lambda handler, body: handler.decide(body, choose, input_tokens=7)
    judge = server.reward("faithfulness", api="systemone")
    composer = Composer([judge], {"reformat": {"faithfulness": 1.0}})
    composer.score([with_entries().candidate])
    pairs, asked = Canary(composer, encode).look([with_entries()])
    found = figures(pairs)["faithfulness"]
    assert found.agreement == 1.0 and 5 <= found.pairs < len(ENTRY_FAULTS)
    assert all(pair.sound == pytest.approx(0.8) for pair in pairs) and set(found.by_kind) <= set(ENTRY_FAULTS)
    assert asked["faithfulness/kept"] == 1, "the entry itself was asked about when it was rewarded"
    assert asked["faithfulness/calls"] <= len(ENTRY_FAULTS) and asked["faithfulness/missing"] == 0
    calls = len(server.calls)
    assert Canary(composer, encode).look([with_entries()])[0] == pairs and len(server.calls) == calls, (
        "a resumed look is free"
    )


def test_what_one_endpoint_is_asked_of_texts_and_of_entries_is_counted_together(server: Any) -> None:  # noqa: F811
    def choose(instructions: str, names: list[str]) -> list[float]:
        return [1.0, *[0.0] * (len(names) - 1)]

    server.answer = lambda handler, body: handler.decide(body, choose, input_tokens=7)
    judges = server.rewards("structure", "faithfulness", api="systemone", timeout_s=60.0)
    composer = Composer(judges, {"reformat": {}})
    pairs, asked = Canary(composer, encode).look([with_entries()])
    assert {pair.judge for pair in pairs} == {"structure", "faithfulness"}
    assert asked["structure+faithfulness/calls"] == len(server.calls)
    assert asked["structure+faithfulness/input_tokens"] == 7 * len(server.calls)
