"""Rewards weighted and added up, by the weights of a recipe, each kept apart for the log.

A reward of weight 0 is not computed, and what it would need need not be there. A completion of the wrong format earns 0
everywhere: not even a right length saves it, and it costs no judge.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from synpro_engine.config import UserError, nearest
from synpro_engine.config.artifact import versions
from synpro_engine.reward.config import RewardConfig
from synpro_engine.reward.embedder import Embedder
from synpro_engine.reward.head import load_head
from synpro_engine.reward.influence import InfluenceOf, InfluenceReward
from synpro_engine.reward.judges import Judge, ask_together
from synpro_engine.reward.own import OwnReward
from synpro_engine.reward.quality import QualityReward
from synpro_engine.reward.similarity import FaithfulnessReward, SimilarityReward
from synpro_engine.reward.structure import StructureReward
from synpro_engine.reward.text_rewards import AntiCopyReward, FormatReward, LengthReward
from synpro_engine.reward.types import Candidate, Reward, RewardFault, RewardTable

NO_JUDGES = frozenset({"influence", "length", "format"})
"""Rewards that say nothing of what a text says: no fault planted in it should show in them."""
_ROUNDING = 1e-6


class Composer:
    """Scores candidates with several rewards at once."""

    def __init__(
        self, rewards: Sequence[Reward], weights: Mapping[str, Mapping[str, float]], also: Collection[str] = ()
    ) -> None:
        """`weights` [operation][reward name]; also: rewards that are measured of every operation, with weight or
        without. UserError for a weight other than 0 whose reward is not given.
        """
        self._also = frozenset(also)
        self.faults = 0
        """Values left out of `rows` so far."""
        self.asked: Counter[str] = Counter()
        """What judges were asked for `rows` so far."""
        self._rewards = {reward.name: reward for reward in rewards}
        self._weights = {
            operation: {name: weight for name, weight in named.items() if weight != 0.0}
            for operation, named in weights.items()
        }
        for operation, named in self._weights.items():
            for name in named:
                if name not in self._rewards:
                    raise UserError(f"`reward.{operation}`: no reward `{name}`{nearest(name, self._rewards)}")

    @property
    def judges(self) -> dict[str, str]:
        """What gives each reward that has a weight: a judge by its version, what is embedded by the engine's."""
        embedded = f"synpro_engine {versions()['synpro_engine']}"
        own = (Judge, FaithfulnessReward, OwnReward)
        return {name: r.version if isinstance(r, own) else embedded for name, r in self._rewards.items()}

    @property
    def judging(self) -> dict[str, str]:
        """Rewards that judge, by name: `entry` where each entry is judged by itself, else `text`."""
        judges = {name: reward for name, reward in self._rewards.items() if name not in NO_JUDGES}
        return {
            name: r.each if isinstance(r, Judge) else "entry" if isinstance(r, FaithfulnessReward) else "text"
            for name, r in judges.items()
        }

    def only(self, names: Collection[str]) -> Composer:
        """Of the very same rewards these alone, measured of every operation that has weights here."""
        chosen = [reward for name, reward in self._rewards.items() if name in names]
        return Composer(chosen, {operation: {} for operation in self._weights}, also=names)

    def score(self, candidates: Sequence[Candidate], *, exact: bool = True) -> RewardTable:
        """Score candidates of any mixture of operations; each reward sees all that it is weighted for at once.

        exact: whether an answer that was read but lacks the exact form (`Parsed.exact`) scores 0, as in tuning.
        Values that are not finite or out of range are told in the table's `faults`; what to do then is the caller's.
        """
        parts = {name: [0.0] * len(candidates) for name in self._rewards}
        total = [0.0] * len(candidates)
        faults: list[RewardFault] = []
        wanted = {
            name: [
                i
                for i, c in enumerate(candidates)
                if c.parsed.ok and (c.parsed.exact or not exact) and self._is_measured(c, name)
            ]
            for name in self._rewards
        }
        chosen = {name: [candidates[i] for i in places] for name, places in wanted.items()}
        found, seconds = self._values(chosen)
        for name, values in found.items():
            low, high = self._rewards[name].range
            for i, value in zip(wanted[name], values, strict=True):
                if not (math.isfinite(value) and low - _ROUNDING <= value <= high + _ROUNDING):
                    faults.append(RewardFault(index=i, reward=name, value=value, range=(low, high)))
                    value = math.nan
                parts[name][i] = value
                if weight := self._weight(candidates[i], name):  # what weighs nothing spoils no total
                    total[i] += weight * value
        return RewardTable(total=total, parts=parts, faults=tuple(faults), asked=self._take_counts(), seconds=seconds)

    def _values(self, chosen: Mapping[str, Sequence[Candidate]]) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Each reward's values of its candidates, and the seconds that they took, in the order of the rewards."""
        values, seconds = dict[str, list[float]](), dict[str, float]()
        for names in self._together:
            began = time.monotonic()
            rewards = [self._rewards[name] for name in names]
            judges = [reward for reward in rewards if isinstance(reward, Judge)]
            if judges:
                found = ask_together([(judge, chosen[judge.name]) for judge in judges])
            else:
                found = [reward(chosen[reward.name]) if chosen[reward.name] else [] for reward in rewards]
            for name, of_reward in zip(names, found, strict=True):
                given, asked = len(of_reward), len(chosen[name])
                assert given == asked, f"reward {name} gave {given} values for {asked} candidates"
                values[name], seconds[name] = of_reward, time.monotonic() - began
        return {name: values[name] for name in self._rewards}, seconds

    @property
    def _together(self) -> list[list[str]]:
        """Names of rewards that are asked for in one go: judges of one model, since they share what is read."""
        groups: dict[object, list[str]] = {}
        for name, reward in self._rewards.items():
            groups.setdefault(reward.client if isinstance(reward, Judge) else name, []).append(name)
        return list(groups.values())

    def _take_counts(self) -> dict[str, int]:
        clients = dict.fromkeys(reward.client for reward in self._rewards.values() if isinstance(reward, Judge))
        counts = {client.name: client.take_counts() for client in clients}
        return {f"{name}/{what}": number for name, of in counts.items() for what, number in of.items()}

    def rows(self, candidates: Sequence[Candidate], *, total: bool = True) -> list[dict[str, float]]:
        """One mapping per candidate with the `total` among its parts, for records of generation: all that was read.

        total: False where these are not all of the rewards that have a weight. Values that are faults are left out,
        with the total that they spoil, and counted in `faults`.
        """
        table = self.score(candidates, exact=False)
        self.faults += len(table.faults)
        self.asked.update(table.asked)
        rows = [
            {name: values[i] for name, values in table.parts.items() if self._is_measured(candidate, name)}
            | ({"total": table.total[i]} if total else {})
            for i, candidate in enumerate(candidates)
        ]
        return [{name: value for name, value in row.items() if math.isfinite(value)} for row in rows]

    def _is_measured(self, candidate: Candidate, name: str) -> bool:
        if self._weight(candidate, name) != 0.0:
            return True
        # A text without entries was not asked about them: 0 would be a verdict, and a filter would go by it.
        reward = self._rewards[name]
        asked = bool(candidate.parsed.entries) or not (isinstance(reward, Judge) and reward.each == "entry")
        return name in self._also and asked

    def _weight(self, candidate: Candidate, name: str) -> float:
        if candidate.operation not in self._weights:
            raise UserError(f"`reward`: no weights for operation `{candidate.operation}`")
        return self._weights[candidate.operation].get(name, 0.0)


def build_composer(
    config: RewardConfig,
    *,
    influence_of: InfluenceOf | None,
    likelihood_of: Callable[[Sequence[str]], Sequence[float]] | None,
    judges: Sequence[Reward] = (),
    device: torch.device | str = "cpu",
) -> Composer:
    """The rewards that `config` gives a weight, put together.

    `influence_of` gives I for each text and `likelihood_of` its mean nats per token under an instruct model; None
    where not at hand, which is a UserError if the weight is not 0. So is MiniLM's wheel missing when needed. `judges`
    take the places of the embedded rewards of their names.
    """
    remote = {judge.name: judge for judge in judges}
    for name, source in (("influence", influence_of), ("quality", likelihood_of)):
        if config.uses(name) and source is None and name not in remote:
            raise UserError(f"`reward`: `{name}` has a weight, but nothing here can measure it; set it to 0")
    makers: dict[str, Callable[[], Reward]] = {
        "format": FormatReward,
        "length": LengthReward,
        "structure": StructureReward,
        "anti_copy": AntiCopyReward,
    }
    if influence_of is not None:
        makers["influence"] = lambda: InfluenceReward(
            influence_of, min_chars=config.influence_min_chars, clip=config.influence_clip
        )
    if likelihood_of is not None:
        makers["quality"] = lambda: QualityReward(likelihood_of, low=config.quality_low, high=config.quality_high)
    encoder, threshold = config.judges.encoder, config.similarity_threshold
    embedded = ("faithfulness",) if encoder else ("similarity", "faithfulness")
    if any(config.uses(name) and name not in remote for name in embedded):
        embedder = Embedder(device)
        makers["similarity"] = lambda: SimilarityReward(embedder, threshold=threshold)
        head = load_head(Path(config.faithfulness_judge)) if config.faithfulness_judge else None
        makers["faithfulness"] = lambda: FaithfulnessReward(embedder, head, threshold=config.faithfulness_threshold)
    if encoder is not None:
        # BERTScore alone, as the paper has it.
        makers["similarity"] = lambda: SimilarityReward(
            Embedder(device, Path(encoder.encoder), layer=encoder.layer), threshold=threshold, invention_weight=0.0
        )
    makers |= {
        name: partial(OwnReward, name, reference, config.function_seconds)
        for name, reference in config.functions.items()
    }
    rewards = [remote.get(name) or makers[name]() for name in config.names if config.uses(name)]
    return Composer(rewards, config.by_operation, config.also)
