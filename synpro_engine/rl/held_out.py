"""What tuning does to the reward on slices that never train: the same slices, by the same random numbers, each time.

A step's own reward hops with the slices that the step has; this one moves only with what the generator writes by then.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from synpro_engine.config import UserError
from synpro_engine.dist import gather_objects, say
from synpro_engine.model.model import Model
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.facts import FactCheck
from synpro_engine.rl.record import means, rollout_row
from synpro_engine.rl.rollouts import RewardScorer, RolloutWorker
from synpro_engine.rl.types import Prompt
from synpro_engine.sampler import Sampler
from synpro_engine.synth import Prompter, Slice
from synpro_engine.train.parking import Needs, stay

KIND = "held_out"
"""Of its records in the metrics."""
_SEED = 0  # not the run's: rounds, and runs of other seeds, are measured by the same numbers too
Rows = dict[str, dict[str, float]]
"""By slice: the means over its completions, by name."""


class HeldOut:
    """Measures one tuning's policy. Draws from the slices alone, and by a sampler of its own.

    So training is to the last bit what it is without, and a run that goes on after a kill measures what it would have.
    """

    def __init__(
        self, config: TuneConfig, slices: Sequence[Slice], policy: Model, scorer: RewardScorer,
        weights: Mapping[str, float], prompter: Prompter, *, longest: int, needs: Needs = stay,
    ) -> None:  # fmt: skip
        """slices: those of prompts of more than `longest` tokens are left out, and of the rest what is wanted is taken.

        UserError where none is left; a line where there are fewer than are wanted.
        """
        key, wanted = f"tune.{prompter.operation.name}.held_out", config.held_out.slices
        self.due = frozenset(config.held_out.due(config.steps))
        """Steps that are done at each measurement."""
        self._key, self._topology = key, policy.topology
        rendered = [Prompt(source=piece, token_ids=prompter.ask(piece.text)) for piece in slices]
        fitting = [prompt for prompt in rendered if len(prompt.token_ids) <= longest]
        if not fitting:
            raise UserError(
                f"`{key}`: none of {len(rendered)} slices that do not train makes a prompt of at most {longest} tokens"
            )
        if len(fitting) < wanted:
            say(self._topology, f"`{key}.slices`: there are {len(fitting)} that fit, in place of {wanted}")
        wanted = min(wanted, len(fitting))
        self._prompts = [fitting[at * len(fitting) // wanted] for at in range(wanted)]  # spread over the documents
        self._members = config.held_out.members
        # It samples seldom, and graphs keep their pages in between.
        sampler = config.sampler.model_copy(update={"graphs": False})
        self._worker = RolloutWorker(
            Sampler(policy, sampler, prompter.tokenizer.decode), scorer, weights, prompter,
            config.model_copy(update={"group_size": self._members}), self._topology, _SEED, needs,
        )  # fmt: skip
        self._facts = FactCheck(
            slices if config.held_out.facts else (), config.held_out.facts, self._worker, prompter, self._topology,
            longest=longest, key=f"{key}.facts",
        )  # fmt: skip
        self._slices = [prompt.key for prompt in self._prompts]
        self._first: Mapping[str, Any] | None = None

    def state_dict(self) -> Mapping[str, Any] | None:
        """The measurement before training, which no later one can be in place of; plain JSON, None of none."""
        return self._first

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint; None: of a run that was not measured before training."""
        self._first = state
        if self._before is None:
            what = "was not measured" if state is None else "other slices were measured"
            say(self._topology, f"`{self._key}`: {what} before training, so no differences to that are told")

    @property
    def _before(self) -> Rows | None:
        # Of other slices few may be among these, and the means of both would not be of the same texts.
        first = self._first
        return None if first is None or first.get("slices") != self._slices else first["before"]

    def measure(self, done: int) -> dict[str, float]:
        """The record of the policy after so many steps, the same on every rank. Collective.

        Raises what sampling and scoring a step's rollouts does. Means are over slices whose rewards are all numbers,
        NaN of none.
        """
        began = time.perf_counter()
        axis, count, size = self._topology.dp, len(self._prompts), self._members
        # Any number of slices: a rank without one comes along, for rewards are scored together.
        places = range(count * axis.rank // axis.size, count * (axis.rank + 1) // axis.size)
        sampled, facts = self._worker.sample(self._prompts, 0, places), self._facts.measure()
        rollouts, asked = self._worker.score(self._prompts, places, sampled)
        mine: Rows = {}
        for group in (rollouts[at : at + size] for at in range(0, len(rollouts), size)):
            rows = [rollout_row(rollout) for rollout in group]
            if not group[0].dropped:
                mine[group[0].prompt.key] = means(rows, rows[0])
        found = {key: row for part in gather_objects(axis, mine) for key, row in part.items()}
        values = means(list(found.values()), next(iter(found.values()), ("reward", "length")))
        if done == 0:
            self._first = {"slices": self._slices, "before": found}
        elif (before := self._before) is not None:
            values |= differences(found, before)
        values |= facts | {"slices": len(found), "completions": len(found) * size}
        values |= {f"judge/{name}": number for name, number in asked.items()}
        return values | {"seconds": time.perf_counter() - began}


def differences(now: Rows, before: Rows) -> dict[str, float]:
    """Of the reward and each of its parts: `difference`, and `low` and `high`, its 95 % interval; by slice."""
    both = [(row, before[key]) for key, row in now.items() if key in before]
    values: dict[str, float] = {}
    for name in both[0][0] if both else ():
        what, slash, part = name.partition("/")
        if what == "reward":
            paired = paired_difference([new[name] - old[name] for new, old in both])
            values |= {f"{of}{slash}{part}": value for of, value in paired._asdict().items()}
    return values


class Paired(NamedTuple):
    """Mean difference of pairs, and its 95 % interval; NaN of one pair."""

    difference: float
    low: float
    high: float


def paired_difference(values: Sequence[float]) -> Paired:
    """By Student's t; the pairs are the sample."""
    count, mean = len(values), statistics.fmean(values)
    half = _quantile(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Paired(mean, mean - half, mean + half)


def _quantile(freedom: int) -> float:
    """What 2.5 % of Student's distribution lie above, to .1 % from three degrees of freedom on.

    At two it is 1 % less, at one 11 %.

    Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
