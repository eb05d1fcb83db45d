"""The arms of one seed: how each makes its text, and what came of training on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.world.rephraser import ACTIONS, SOURCES, WRONG, Rephraser, judged, within_groups
from benchmarks.world.trainings import MASK, TUNED, UNTUNED, Trainings
from benchmarks.world.world import PEOPLE, Text, World
from synpro_engine.influence import Estimator, EstimatorConfig

GRID: list[dict[str, Any]] = [
    {"optimizer": {"lr": 2e-3, "weight_decay": decay}, "dropout": {"embedding": part, "residual": part}}
    for decay in (0.1, 0.3, 1.0, 3.0)
    for part in (0.0, 0.1, 0.2)
]
MASKED = TUNED | {"dropout": {**TUNED["dropout"], "tokens": 0.15, "mask_token": MASK}}
COPIES = (2, 4, 8)
"""Times that each person's documents are drawn, for the curve that multiples are read off by distinct tokens."""
LEFT_OUT = ("theta", *(f"unique-{copies}" for copies in COPIES))
"""Trainings that are no arm."""
_STEPS, _OF_EACH, _BEST_OF = 30, 3, 4
Record = dict[str, Any]
_JUDGES = {"quality": 1.0, "faithfulness": 1.0}
_WITH_INFLUENCE = {**_JUDGES, "influence": 1.0}


class Study:
    """All arms of one world. Text and order are functions of the seed; arms share theta."""

    def __init__(self, trainings: Trainings) -> None:
        self._trainings, self._world = trainings, trainings.world
        self._organic = self._world.organic()
        self._sources = self._organic[:PEOPLE]
        self._estimator: Estimator | None = None

    def arms(self) -> dict[str, Callable[[], Record]]:
        """What makes each arm, by name; the losses of theta first."""
        oracles = {f"unique-{copies}": self._oracle(copies) for copies in COPIES}
        return {
            "theta": self._trainings.make_theta,
            "repetition": lambda: self._trainings.train("repetition", self._organic),
            "untuned repetition": lambda: self._trainings.train("untuned", self._organic, anew=True, settings=UNTUNED),
            "masked tokens": lambda: self._trainings.train("masked", self._organic, settings=MASKED),
            "prompted": lambda: self._with(Rephraser.prompted(), "prompted"),
            "tuned, no influence": lambda: self._tuned("plain", _JUDGES),
            "tuned, influence": lambda: self._tuned("influence", _WITH_INFLUENCE),
            "tuned, influence shuffled": lambda: self._tuned("placebo", _WITH_INFLUENCE, shuffled=True),
            "best of four by influence": self._best_of,
            **oracles,
        }

    def truths(self) -> Iterator[tuple[str, Callable[[], Record]]]:
        """What each action is worth: training on what it alone makes, beside its mean influence."""
        for number, (form, care) in enumerate(ACTIONS):
            yield f"{form}, {care}", lambda number=number: self._only(number)

    def _oracle(self, copies: int) -> Callable[[], Record]:
        # From the beginning, as whoever has that much text would train; theta has read the smallest size of it alone.
        return lambda: self._trainings.train(f"unique-{copies}", self._world.organic(copies), anew=True)

    def _with(self, rephraser: Rephraser, name: str) -> Record:
        rng = self._world.draws("pool")
        made = [rephraser.rephrase(self._world, source, rng) for _ in range(_OF_EACH) for source in self._sources]
        return self._on([text for text, _ in made], name) | {"probabilities": rephraser.probabilities.tolist()}

    def _on(self, texts: Sequence[Text], name: str) -> Record:
        right = float(np.mean([text.right for text in texts]))
        losses = self._trainings.train(name, self._organic, texts)
        return losses | {"tokens": sum(len(text.words) for text in texts), "right": right}

    def _tuned(self, name: str, weights: Mapping[str, float], *, shuffled: bool = False) -> Record:
        rephraser = Rephraser.prompted()

        def rewards(texts: Sequence[Text], actions: Sequence[int], rng: np.random.Generator) -> dict[str, list[float]]:
            found = judged(texts, actions, rng)
            if "influence" in weights:
                found["influence"] = self._influence(texts)
                if shuffled:
                    found["influence"] = within_groups(found["influence"], rng)
            return found

        rephraser.tune(self._world, self._sources, rewards, weights, _STEPS)
        return self._with(rephraser, name)

    def _influence(self, texts: Sequence[Text]) -> list[float]:
        if self._estimator is None:
            self._estimator = self._trainings.influence(EstimatorConfig())
        return [score.value for score in self._estimator.score([text.words[:-1] for text in texts])]

    def _best_of(self) -> Record:
        rephraser, rng = Rephraser.prompted(), self._world.draws("best")
        kept: list[Text] = []
        for _ in range(_OF_EACH):
            made = [
                rephraser.rephrase(self._world, source, rng)[0] for source in self._sources for _ in range(_BEST_OF)
            ]
            scores = np.array(self._influence(made)).reshape(-1, _BEST_OF)
            kept += [made[_BEST_OF * place + int(best)] for place, best in enumerate(scores.argmax(1))]
        return self._on(kept, "best-of")

    def _only(self, action: int) -> Record:
        made = texts_of(self._world, self._sources, action)
        scored = self._influence(sample_of(made))
        return self._on(made, f"only-{action}") | {
            "influence": float(np.mean(scored)),
            "error": float(np.std(scored, ddof=1) / len(scored) ** 0.5),
        }


def texts_made(name: str) -> int:
    """Synthetic texts that an arm trains on."""
    return _OF_EACH * PEOPLE if name == "prompted" or name.startswith(("tuned", "best of")) else 0


def texts_scored(name: str) -> int:
    """Texts that influence scores for an arm, to tune by or to choose from; the placebo's are scored too."""
    tuning, drawn = _STEPS * SOURCES * Rephraser.group, _OF_EACH * PEOPLE * _BEST_OF
    both = {"tuned, influence": tuning, "tuned, influence shuffled": tuning, "best of four by influence": drawn}
    return both.get(name, 0)


def texts_of(world: World, sources: Sequence[Text], action: int) -> list[Text]:
    """What one action makes of all sources."""
    form, care = ACTIONS[action]
    rng = world.draws("truth", action)
    return [
        world.say(source.person, form, source.style, rng, WRONG[care]) for _ in range(_OF_EACH) for source in sources
    ]


def sample_of(texts: Sequence[Text]) -> Sequence[Text]:
    """Those that an action is scored by."""
    return texts[:: len(texts) // 48]


def tune_repetition(trainings: Trainings) -> Iterator[Record]:
    """Repetition from the beginning under each setting of the grid."""
    for number, settings in enumerate(GRID):
        losses = trainings.train(f"grid-{number}", trainings.world.organic(), anew=True, settings=settings)
        yield {"settings": settings, **losses}
