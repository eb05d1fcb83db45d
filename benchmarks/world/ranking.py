"""Why influence ranks actions as it does: what each is worth after so many steps, and what other scores say of it."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.world.rephraser import ACTIONS, Rephraser
from benchmarks.world.study import sample_of, texts_of
from benchmarks.world.trainings import Trainings
from benchmarks.world.world import PEOPLE, Text
from synpro_engine.influence import Estimator, EstimatorConfig

Record = dict[str, Any]
BASE = "repetition"
HORIZONS = (1, 10, 100, 300)
"""Steps behind theta, which are told."""
_JOINED = 5
"""Texts that are scored as one."""
NAMES = [f"{form}, {care}" for form, care in ACTIONS]


class Ranking:
    """Of one world: what actions are worth, and scores of them."""

    def __init__(self, trainings: Trainings, names: Sequence[str] = NAMES) -> None:
        """names: of the actions."""
        self._trainings, self._world, self._names = trainings, trainings.world, names
        self._sources = self._world.organic()[:PEOPLE]

    def records(self, known: Sequence[Mapping[str, Any]], horizons: Sequence[int]) -> Iterator[Record]:
        """What is not known yet of this world: worths by the shortest horizon first, then scores, then the others."""
        done = {(one["bench"], one["name"], one.get("horizon")) for one in known}
        self._trainings.make_theta()
        shortest, *others = sorted(horizons)
        yield from self._truths(shortest, done)
        if any(("world_scores", name, None) not in done for name in self._names):
            for name, values in self.scores().items():
                yield {"bench": "world_scores", "seed": self._world.seed, "name": name, "scores": values}
        for steps in others:
            yield from self._truths(steps, done)
        shutil.rmtree(self._trainings.place, ignore_errors=True)

    def _truths(self, steps: int, done: Collection[tuple[str, str, int | None]]) -> Iterator[Record]:
        for name in (BASE, *self._names):
            if ("world_truth", name, steps) not in done:
                seed = self._world.seed
                yield {"bench": "world_truth", "seed": seed, "name": name, "horizon": steps} | self.truth(name, steps)

    def truth(self, name: str, steps: int) -> Record:
        """Held-out losses along a training from theta on what one action makes alone, or (`BASE`) on organic text."""
        texts, number = ([], "base") if name == BASE else (self._texts(name), NAMES.index(name))
        every = 1 if steps <= HORIZONS[1] else HORIZONS[1]
        losses = self._trainings.losses_along(f"truth-{steps}-{number}", texts, steps, every)
        return {"losses": {str(step): found for step, found in losses.items()}}

    def scores(self) -> dict[str, dict[str, float]]:
        """By action: its mean score by each way to score."""
        found: dict[str, dict[str, float]] = {name: {} for name in self._names}
        for how, estimator in self._estimators():
            for name, values in found.items():
                values |= _mean_scores(how, estimator, sample_of(self._texts(name)))
        return found

    def _texts(self, name: str) -> list[Text]:
        return texts_of(self._world, self._sources, NAMES.index(name))

    def _estimators(self) -> Iterator[tuple[str, Estimator]]:
        """Each way to score, one in memory at a time."""
        make, world, usual = self._trainings.influence, self._world, EstimatorConfig()
        reference = world.asked(world.reference)
        references = {
            "a third of the reference": reference[: len(reference) // 3],
            "towards the validation": world.asked(world.validation),
            "twice the reference": [*reference, *world.asked(world.validation)],
        }
        yield "next step", make(usual, others=references)
        yield "not clipped", make(EstimatorConfig(clip=0.0))
        for steps in (10, 100):
            yield f"walk of {steps} steps", self._trainings.walked(steps)
        early = self._trainings.checkpoints("path", anew=True)[:-1]
        for part, checkpoint in enumerate(early, 1):
            yield f"earlier: {part}/3 of the way to theta", make(usual, checkpoint)
        rng, prompted = world.draws("ranking"), Rephraser.prompted()
        texts = [prompted.rephrase(world, source, rng)[0] for source in self._sources]
        for part, checkpoint in enumerate(self._trainings.checkpoints("prompted-path", texts), 1):
            yield f"later: {part}/3 of the way from theta", make(usual, checkpoint)


def _mean_scores(how: str, estimator: Estimator, texts: Sequence[Text]) -> dict[str, float]:
    """The mean over texts, under `how`; along the next step also otherwise weighed, and along other directions."""
    scores = estimator.score([text.words[:-1] for text in texts])
    value_T, tokens_T = (np.array([getattr(score, key) for score in scores]) for key in ("value", "tokens"))
    found = {how: float(value_T.mean())}
    if how != "next step":
        return found
    for name in scores[0].others:
        found[name] = float(np.mean([score.others[name] for score in scores]))
    joined = [
        [word for text in texts[begin : begin + _JOINED] for word in text.words][:-1]
        for begin in range(0, len(texts), _JOINED)
    ]
    at_values = [
        sum(share for share, value in zip(score.shares, text.values, strict=False) if value)
        for score, text in zip(scores, texts, strict=True)
    ]
    return found | {
        "at values alone": float(np.mean(at_values)),
        "by tokens": float((value_T * tokens_T).sum() / tokens_T.sum()),
        "sum over a text": float((value_T * tokens_T).mean()),
        f"{_JOINED} texts as one": float(np.mean([score.value for score in estimator.score(joined)])),
    }
