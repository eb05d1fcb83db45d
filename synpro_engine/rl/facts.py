"""Whether what a policy writes keeps facts that were planted in its source, on slices that never train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from synpro_engine.dist import Topology, gather_objects, say
from synpro_engine.reward.facts import KINDS, plant_facts
from synpro_engine.rl.rollouts import RolloutWorker
from synpro_engine.rl.types import Prompt
from synpro_engine.synth import Prompter, Slice


class FactCheck:
    """Has a worker rewrite a few slices with planted facts. The facts of a slice are the same ones in each round."""

    def __init__(
        self, slices: Sequence[Slice], wanted: int, worker: RolloutWorker, prompter: Prompter, topology: Topology,
        *, longest: int, key: str,
    ) -> None:  # fmt: skip
        """slices: of those that take a fact and make a prompt of at most `longest` tokens, `wanted` are taken.

        key: of the setting, for a line where there are fewer.
        """
        planted = [(piece, found) for piece in slices if (found := plant_facts(piece.text, piece.key)) is not None]
        asked = [
            (Prompt(source=replace(piece, text=found.text), token_ids=prompter.ask(found.text)), found)
            for piece, found in planted
        ]
        fitting = [pair for pair in asked if len(pair[0].token_ids) <= longest]
        if len(fitting) < wanted:
            say(topology, f"`{key}`: there are {len(fitting)} slices that fit with facts in them, in place of {wanted}")
        count = min(wanted, len(fitting))
        taken = [fitting[at * len(fitting) // count] for at in range(count)]  # spread over the documents
        self._prompts, self._planted = [prompt for prompt, _ in taken], [found for _, found in taken]
        self._worker, self._topology = worker, topology

    def measure(self) -> dict[str, float]:
        """The share of facts that completions of the right form keep, in all and by kind. Collective.

        NaN where there is no such completion, nothing without slices.
        """
        axis, count = self._topology.dp, len(self._prompts)
        if not count:
            return {}
        # Any number of slices, also fewer than ranks.
        places = range(count * axis.rank // axis.size, count * (axis.rank + 1) // axis.size)
        sampled = self._worker.sample(self._prompts, 0, places)
        sources = [self._planted[at] for at, group in zip(places, sampled, strict=True) for _ in group]
        candidates = self._worker.read(self._prompts, places, sampled)
        mine = [
            found.kept_by(candidate.parsed.text)
            for found, candidate in zip(sources, candidates, strict=True)
            if candidate.parsed.ok
        ]
        kept = [one for part in gather_objects(axis, mine) for one in part]
        shares = {f"facts/{kind}": sum(one[kind] for one in kept) / len(kept) if kept else math.nan for kind in KINDS}
        return {"facts": math.fsum(shares.values()) / len(shares), **shares, "facts_texts": len(kept)}
