"""When judges are looked at while they train a generator, on which completions, and what follows when one is blind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from synpro_engine.config import UserError
from synpro_engine.dist import Topology, broadcast_in, gather_objects, on_every_rank
from synpro_engine.reward.canary import Canary, Pair, Specimen, figures
from synpro_engine.rl.config import CanaryConfig
from synpro_engine.rl.types import Prompt, Rollout

AGREEMENT = "agreement/"
"""What a record has each judge's figure under."""


class JudgeFell(UserError):
    """A judge no longer tells a completion from itself with a fault, and tuning was to stop then."""


class CanaryWatch:
    """Looks at the judges of one tuning every so many steps. Draws from the seed and the step alone.

    So a run that goes on after a kill sees what it would have seen, in any layout, and training draws what it would
    have drawn without.
    """

    def __init__(
        self, config: CanaryConfig, canary: Canary, topology: Topology, *, operation: str, steps: int, seed: int
    ) -> None:
        """UserError where no reward of the operation judges, and for a least value of one that does not."""
        self._config, self._canary, self._topology = config, canary, topology
        self._steps, self._seed, self._key = steps, seed, f"tune.{operation}.judge_canary"
        if fault := config.fault(canary.names):
            raise UserError(f"`{self._key}`: {fault}")

    def is_due(self, step: int) -> bool:
        """Whether the step with this 0-based index looks: the first, every so many, and the last."""
        return step % self._config.every == 0 or step == self._steps - 1

    def look(
        self,
        rollouts: Sequence[Rollout],
        share: range,
        prompts: int,
        group_size: int,
        others: Sequence[Prompt],
        step: int,
    ) -> dict[str, float | int]:
        """The record of the job's judges at a step, the same on every rank. Collective.

        rollouts: this rank's, of the prompts at `share` among the step's `prompts`; others: as many prompts of another
        step.
        """
        began = time.perf_counter()
        specimens = [
            Specimen(readable[nth].candidate, others[place].source.text, f"{self._seed} canary {step} {place} {nth}")
            for place, nth in self._chosen(prompts)
            if place in share
            and nth < len(readable := _readable(rollouts, (place - share.start) * group_size, group_size))
        ]
        found: list[tuple[list[Pair], dict[str, int]]] = []
        # Outside collectives, as rewards are.
        on_every_rank(self._topology, lambda: found.append(self._canary.look(specimens)))
        told = broadcast_in(self._topology.tp, found[0])
        parts = gather_objects(self._topology.dp, told)
        values: dict[str, float | int] = {}
        for judge, of_judge in figures([pair for pairs, _ in parts for pair in pairs]).items():
            values |= {
                f"{AGREEMENT}{judge}": of_judge.agreement,
                f"auc/{judge}": of_judge.auc,
                f"pairs/{judge}": of_judge.pairs,
            }
            values |= {f"kinds/{judge}/{kind}": value for kind, value in of_judge.by_kind.items()}
        asked: Counter[str] = Counter()
        for _, counts in parts:
            asked.update(counts)
        values |= {f"judge/{name}": count for name, count in asked.items()}
        return values | {"seconds": time.perf_counter() - began}

    def _chosen(self, prompts: int) -> list[tuple[int, int]]:
        """(place among the step's prompts, number among the group's readable completions), spread over the prompts."""
        texts = self._config.texts
        if texts <= prompts:
            return [(at * prompts // texts, 0) for at in range(texts)]
        return [(at % prompts, at // prompts) for at in range(texts)]

    def fallen(self, values: Mapping[str, float | int], step: int) -> str:
        """One line about the judges below their least values; "" where there is none."""
        told = [
            f"`{judge}` tells {values[AGREEMENT + judge]:.2f} of completions from themselves with a fault"
            f" (`{self._key}.least.{judge}` is {least:g})"
            for judge, least in self._config.least.items()
            if values.get(AGREEMENT + judge, 1.0) < least
        ]
        if not told:
            return ""
        return f"at step {step + 1} the judge {' and '.join(told)}: what it gives now may be won by deceiving it"

    @property
    def stops(self) -> bool:
        """Whether a fallen judge ends the tuning."""
        return self._config.below == "stop"


def _readable(rollouts: Sequence[Rollout], begin: int, group_size: int) -> list[Rollout]:
    """Those of the group that begins there that rewards were measured of."""
    group = rollouts[begin : begin + group_size]
    return [one for one in group if one.candidate.parsed.ok and one.candidate.parsed.exact]
