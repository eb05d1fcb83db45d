"""A rephraser that is a distribution over what it can do, tuned as generators are: by rewards within groups.

It knows nothing of the world: to each document it does one of its actions, a form and how careful it is. So what tuning
finds can be read off its probabilities, and what each action is worth can be measured by training on it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.world.world import FORMS, Text, World
from synpro_engine.rl.advantages import per_reward_advantages

WRONG = {"careful": 0.0, "careless": 0.3}
"""Probability of each value to be made up."""
ACTIONS = [(form, care) for form in FORMS for care in WRONG]
SOURCES, _RATE = 6, 0.15
"""Documents of a step of tuning."""
_JUDGES_NOISE = 0.1
Rewards = Callable[[Sequence[Text], Sequence[int], np.random.Generator], dict[str, list[float]]]


@dataclass
class Rephraser:
    """logits_A float64: of each action, whatever the document."""

    logits_A: NDArray[np.float64]
    group: ClassVar[int] = 8
    """Rephrasings of a document that are compared."""

    @classmethod
    def prompted(cls) -> Rephraser:
        """As it comes: every action as likely as any other."""
        return cls(np.zeros(len(ACTIONS)))

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Of the actions, [A]."""
        return np.exp(self.logits_A - np.logaddexp.reduce(self.logits_A))

    def rephrase(self, world: World, source: Text, rng: np.random.Generator) -> tuple[Text, int]:
        """What it makes of a document, and by which action."""
        action = int(rng.choice(len(ACTIONS), p=self.probabilities))
        form, care = ACTIONS[action]
        return world.say(source.person, form, source.style, rng, WRONG[care]), action

    def tune(
        self, world: World, sources: Sequence[Text], rewards: Rewards, weights: Mapping[str, float], steps: int
    ) -> None:
        """Policy-gradient steps on advantages within groups (`per_reward_advantages`)."""
        rng = world.draws("tuning")
        for _ in range(steps):
            chosen = [sources[int(rng.integers(len(sources)))] for _ in range(SOURCES)]
            made = [self.rephrase(world, source, rng) for source in chosen for _ in range(self.group)]
            texts, actions = [text for text, _ in made], [action for _, action in made]
            parts = {
                name: torch.tensor(values).reshape(SOURCES, self.group)
                for name, values in rewards(texts, actions, rng).items()
            }
            advantage_R = per_reward_advantages(parts, weights).flatten().numpy()
            # d log p(a) / d logits = onehot(a) - p
            gradient_A = -advantage_R.sum() * self.probabilities
            np.add.at(gradient_A, actions, advantage_R)
            self.logits_A = self.logits_A + _RATE * gradient_A / SOURCES


def judged(texts: Sequence[Text], actions: Sequence[int], rng: np.random.Generator) -> dict[str, list[float]]:
    """What judges say, with noise: whether a text reads as one, and which part of its values is right."""
    quality = [float(ACTIONS[action][0] != "noise") for action in actions]
    right = [text.right for text in texts]
    noise_2R = _JUDGES_NOISE * rng.standard_normal((2, len(texts)))
    return {
        "quality": [value + noise for value, noise in zip(quality, noise_2R[0], strict=True)],
        "faithfulness": [value + noise for value, noise in zip(right, noise_2R[1], strict=True)],
    }


def within_groups(rewards: Sequence[float], rng: np.random.Generator) -> list[float]:
    """A placebo: each group's rewards as they are, given to its members at random."""
    return rng.permuted(np.reshape(rewards, (-1, Rephraser.group)), axis=1).flatten().tolist()
