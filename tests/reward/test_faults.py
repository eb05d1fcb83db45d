"""A judge that gives no number: the value must stay none, and not turn into a reward, least of all the best one."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from synpro_engine.reward import (
    Candidate,
    Composer,
    FaithfulnessReward,
    InfluenceReward,
    QualityReward,
    SimilarityReward,
    band_pass,
)
from synpro_engine.synth import REFORMAT, REPHRASE

SOURCE = "The river rose in spring and the workers of the town left their homes."
TEXT = f"{REPHRASE.heading}\nWhen spring came the water rose, and those who worked in town had gone."
ENTRIES = f"{REFORMAT.heading}\n- Topic: The flood. Content: People left before the river came."


def _candidate(raw: str) -> Candidate:
    operation = REPHRASE if raw == TEXT else REFORMAT
    return Candidate(operation=operation.name, source=SOURCE, raw=raw, parsed=operation.parse(raw))


class BrokenEmbedder:
    """Gives NaN, as a model with damaged weights does."""

    def embed(self, texts: Sequence[str]) -> list[Tensor]:
        return [torch.full((3, 4), math.nan) for _ in texts]

    def starts(self, text: str) -> list[int]:
        return [0, 1, 2]


def _nan(texts: Sequence[str], ids: Sequence[Sequence[int] | None] = ()) -> list[float]:
    return [math.nan for _ in texts]


REWARDS = {
    "influence": InfluenceReward(_nan, min_chars=0),
    "influence, clipped": InfluenceReward(_nan, min_chars=0, clip=0.1),
    "quality": QualityReward(_nan),
    "similarity": SimilarityReward(BrokenEmbedder()),
    "graded similarity": SimilarityReward(BrokenEmbedder(), threshold=None),
    "faithfulness": FaithfulnessReward(BrokenEmbedder()),
}


@pytest.mark.parametrize("name", REWARDS)
def test_a_judge_that_gives_no_number_earns_none(name: str) -> None:
    raw = ENTRIES if name == "faithfulness" else TEXT
    assert all(math.isnan(value) for value in REWARDS[name]([_candidate(raw)]))


def test_the_band_of_likelihoods_lets_no_nan_pass_as_a_value() -> None:
    assert math.isnan(band_pass(math.nan, 1.5, 3.7, 1.5))
    assert band_pass(math.inf, 1.5, 3.7, 1.5) == 0.0, "a text without tokens is known to be bad"


class Fixed:
    """A reward whose values are given."""

    name = "fixed"

    def __init__(self, values: Sequence[float], bounds: tuple[float, float]) -> None:
        self._values, self.range = values, bounds

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        return list(self._values[: len(candidates)])


def test_values_that_are_no_number_or_out_of_range_are_told_and_spoil_only_their_own_total() -> None:
    values = [0.5, math.nan, math.inf, -math.inf, 1.1, 1.0 + 1e-9]
    composer = Composer([Fixed(values, (0.0, 1.0))], {"rephrase": {"fixed": 2.0}})
    table = composer.score([_candidate(TEXT)] * 6)
    assert [fault.index for fault in table.faults] == [1, 2, 3, 4]
    assert str(table.faults[3]) == "reward fixed is 1.1, not in its range of 0 to 1"
    assert [math.isnan(total) for total in table.total] == [False, True, True, True, True, False]
    rows = composer.rows([_candidate(TEXT)] * 6)
    assert rows[0] == {"fixed": 0.5, "total": 1.0} and rows[1] == {} and composer.faults == 4
