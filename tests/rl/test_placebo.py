"""Shuffled rewards keep each group's distribution and know nothing of its texts."""

from collections import Counter

import pytest

from synpro_engine.reward import RewardTable
from synpro_engine.rl.placebo import shuffled_within_groups
from synpro_engine.synth import Candidate, Parsed

SIZE = 6
WEIGHTS = {"influence": 3.0, "length": 1.0}


def _candidates(groups: int, refused: frozenset[int] = frozenset(), inexact: frozenset[int] = frozenset()):
    return [
        Candidate(
            operation="rephrase",
            source=f"source {at // SIZE}",
            raw=f"text {at}",
            parsed=Parsed(ok=at not in refused, text=f"text {at}", exact=at not in inexact),
        )
        for at in range(groups * SIZE)
    ]


def _table(candidates: list[Candidate]) -> RewardTable:
    earns = [c.parsed.ok and c.parsed.exact for c in candidates]
    influence = [0.01 * at * at if earning else 0.0 for at, earning in enumerate(earns)]
    length = [float(at % 2) if earning else 0.0 for at, earning in enumerate(earns)]
    total = [3.0 * i + n for i, n in zip(influence, length, strict=True)]
    return RewardTable(total=total, parts={"influence": influence, "length": length})


def _shuffled(table: RewardTable, candidates: list[Candidate], *, seed: int = 1) -> RewardTable:
    keys = [f"doc:{group}" for group in range(len(candidates) // SIZE)]
    return shuffled_within_groups(table, candidates, WEIGHTS, ["influence"], keys, seed)


def _groups(values: list[float]) -> list[list[float]]:
    return [values[at : at + SIZE] for at in range(0, len(values), SIZE)]


def test_each_group_keeps_its_values_and_hands_them_to_other_completions() -> None:
    candidates = _candidates(40)
    table = _table(candidates)
    found = _shuffled(table, candidates)
    assert found.parts["length"] == table.parts["length"]
    before, after = _groups(table.parts["influence"]), _groups(found.parts["influence"])
    assert [Counter(group) for group in after] == [Counter(group) for group in before]
    # Of 240 values about one in six stays in its place by chance.
    stayed = sum(a == b for a, b in zip(found.parts["influence"], table.parts["influence"], strict=True))
    assert 15 < stayed < 75


def test_totals_are_those_of_the_values_that_each_has_now() -> None:
    candidates = _candidates(8)
    found = _shuffled(_table(candidates), candidates)
    expected = [3.0 * i + n for i, n in zip(found.parts["influence"], found.parts["length"], strict=True)]
    assert found.total == pytest.approx(expected)


def test_what_was_refused_or_lacks_the_form_earns_nothing_before_and_after() -> None:
    refused, inexact = frozenset({1, 8}), frozenset({4})
    candidates = _candidates(2, refused, inexact)
    found = _shuffled(_table(candidates), candidates)
    assert all(found.parts["influence"][at] == found.total[at] == 0.0 for at in (*refused, *inexact))
    read = [at for at in range(SIZE, 2 * SIZE) if at not in refused]
    assert all(found.parts["influence"][at] > 0 for at in read)


def test_the_permutation_hangs_on_seed_and_texts_and_not_on_values_or_on_other_groups() -> None:
    candidates = _candidates(3)
    table = _table(candidates)
    first = _shuffled(table, candidates)
    assert _shuffled(table, candidates) == first
    assert _shuffled(table, candidates, seed=2) != first
    # A group alone, as another rank has it, goes the same way; so do other values of the same texts.
    alone = RewardTable(
        total=table.total[SIZE : 2 * SIZE], parts={name: of[SIZE : 2 * SIZE] for name, of in table.parts.items()}
    )
    own = shuffled_within_groups(alone, candidates[SIZE : 2 * SIZE], WEIGHTS, ["influence"], ["doc:1"], 1)
    assert own.parts["influence"] == first.parts["influence"][SIZE : 2 * SIZE]
    negated = RewardTable(total=table.total, parts=table.parts | {"influence": [-v for v in table.parts["influence"]]})
    assert _shuffled(negated, candidates).parts["influence"] == [-v for v in first.parts["influence"]]
