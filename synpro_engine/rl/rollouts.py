"""From source slices to scored completions: prompt, sample, read, reward.

Data-parallel ranks share out the prompts, tensor-parallel ranks do the same work and agree on its rewards. Every choice
is a function of (seed, step, slice), never of the layout.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from synpro_engine.backend.spans import ROLLOUT, SCORE
from synpro_engine.config import UserError
from synpro_engine.data import stable_hash, stable_permutation
from synpro_engine.dist import Topology, broadcast_in, gather_objects, on_every_rank
from synpro_engine.reward import RewardFault, RewardTable
from synpro_engine.reward.config import OVERLONG
from synpro_engine.rl.advantages import overlong_penalty
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.placebo import shuffled_within_groups
from synpro_engine.rl.types import Prompt, Rollout
from synpro_engine.sampler import Completion, Sampler
from synpro_engine.synth import Candidate, Prompter, Slice
from synpro_engine.train.parking import Needs, stay

_SHOWN = 200
"""Characters of a completion that a message shows."""


class RewardScorer(Protocol):
    """What rollouts ask of rewards (`reward.Composer` is one)."""

    def score(self, candidates: Sequence[Candidate]) -> RewardTable:
        """Score candidates; called by all tensor-parallel ranks with the same ones, for a reward may be a model."""
        ...


class PromptSource:
    """The prompts of each step: all slices once in a shuffled order, then again in another."""

    def __init__(self, slices: Sequence[Slice], prompter: Prompter, per_step: int, seed: int, *, longest: int) -> None:
        """Render all prompts; those of more than `longest` tokens are left out. UserError when none is left."""
        # All of them at once: how many are left decides the order of every step.
        rendered = [Prompt(source=piece, token_ids=prompter.ask(piece.text)) for piece in slices]
        self.prompts = [prompt for prompt in rendered if len(prompt.token_ids) <= longest]
        self.left_out = len(rendered) - len(self.prompts)
        if not self.prompts:
            shortest = min((len(prompt.token_ids) for prompt in rendered), default=0)
            raise UserError(
                f"`prompt.max_tokens`: none of {len(rendered)} slices makes a prompt of {prompter.operation.name} of at"
                f" most {longest} tokens, or what the generator's seq_len leaves (the shortest has {shortest})"
            )
        self._per_step = per_step
        self._seed = seed

    def at(self, step: int) -> list[Prompt]:
        """The prompts of the step with 0-based index `step`, over all ranks."""
        prompts: list[Prompt] = []
        # A function of the step alone, so that a resumed run asks what the killed one would have asked.
        for position in range(step * self._per_step, (step + 1) * self._per_step):
            epoch, index = divmod(position, len(self.prompts))
            order = stable_permutation(len(self.prompts), self._seed, "rl.order", str(epoch))
            prompts.append(self.prompts[int(order[index])])
        return prompts

    def instead(self, step: int, attempt: int, place: int) -> Prompt:
        """One in place of the step's prompt at `place`, whose group had no signal in the attempt before."""
        # Drawn, not taken from the order above: whichever groups are replaced, later steps keep their prompts.
        draw = stable_hash(self._seed, "rl.refill", f"{step}:{attempt}:{place}")
        return self.prompts[draw % len(self.prompts)]


class Scored(NamedTuple):
    """This rank's rollouts, in order of prompts and members, and what the job's remote judges were asked for a step."""

    rollouts: list[Rollout]
    asked: dict[str, int]


def check_shares(config: TuneConfig, operation: str, topology: Topology) -> None:
    """UserError when the data-parallel ranks cannot share out the prompts of a step, or a rank its completions."""
    if config.prompts_per_step % topology.dp.size:
        raise UserError(
            f"`tune.{operation}.prompts_per_step`: {config.prompts_per_step} cannot be divided by"
            f" {topology.dp.size} data-parallel ranks"
        )
    completions = config.prompts_per_step // topology.dp.size * config.group_size
    if completions < config.minibatches:
        raise UserError(
            f"`tune.{operation}.minibatches`: {config.minibatches} are more than the {completions} completions"
            " of a rank"
        )


class RolloutWorker:
    """Samples and scores this rank's share of prompts."""

    def __init__(
        self, sampler: Sampler, scorer: RewardScorer, weights: Mapping[str, float], prompter: Prompter,
        config: TuneConfig, topology: Topology, seed: int, needs: Needs = stay,
    ) -> None:  # fmt: skip
        """needs: told of the phase ahead of sampling and of scoring."""
        self.sampler, self._needs = sampler, needs
        self._scorer, self._weights = scorer, weights
        self._prompter, self._config, self._topology, self._seed = prompter, config, topology, seed
        self._guessed = (0, 0)  # tokens that were told of already

    def share(self, prompts: Sequence[Prompt]) -> range:
        """Indices of this rank's prompts among the step's."""
        dp = self._topology.dp
        # Consecutive shares in rank order: what is gathered from the ranks stands in the order of the prompts.
        per_rank = len(prompts) // dp.size
        return range(dp.rank * per_rank, (dp.rank + 1) * per_rank)

    def sample(
        self, prompts: Sequence[Prompt], step: int, places: Sequence[int], attempt: int = 0
    ) -> list[list[Completion]]:
        """Completions [prompt][member] of the prompts at `places`, which are this rank's."""
        again = f":{attempt}" if attempt else ""
        self._needs(ROLLOUT)
        return self.sampler.generate(
            [prompts[i].token_ids for i in places],
            group_size=self._config.group_size,
            sampling=self._config.sampling,
            stop_ids=self._prompter.stop_ids,
            # By place in the step, for a slice may come twice in one step of a small corpus.
            seeds=[stable_hash(self._seed, "rl.sample", f"{step}:{i}:{prompts[i].key}{again}") for i in places],
            vocab_limit=self._prompter.tokenizer.vocab_size,
        )

    def guesses(self) -> dict[str, float]:
        """What the sampler guessed ahead since this was last asked, over all ranks. Collective; {} where it does not.

        drafted: tokens; draft_acceptance: the share of them that was drawn too, NaN of none.
        """
        if not self._config.sampler.speculate:
            return {}
        now = (self.sampler.drafted, self.sampler.kept)
        more = [new - old for new, old in zip(now, self._guessed, strict=True)]
        self._guessed = now
        drafted, kept = map(sum, zip(*gather_objects(self._topology.dp, more), strict=True))
        return {"drafted": float(drafted), "draft_acceptance": kept / drafted if drafted else math.nan}

    def read(
        self, prompts: Sequence[Prompt], places: Sequence[int], sampled: Sequence[Sequence[Completion]]
    ) -> list[Candidate]:
        """What each completion says, in order of prompts and members."""
        return [
            self._prompter.read(prompts[i].source.text, completion)
            for i, group in zip(places, sampled, strict=True)
            for completion in group
        ]

    def score(
        self, prompts: Sequence[Prompt], places: Sequence[int], sampled: Sequence[Sequence[Completion]]
    ) -> Scored:
        """Read and reward the completions of the prompts at `places`. Collective.

        UserError, on every rank, for a reward that is no number or out of its range, unless its group is to be dropped.
        """
        candidates = self.read(prompts, places, sampled)
        self._needs(SCORE)
        tables: list[RewardTable] = []
        # Outside collectives, for a judge elsewhere may take as long as it likes; and what stops one rank stops all.
        on_every_rank(self._topology, lambda: tables.append(self._scorer.score(candidates)))
        # The first rank's for its tensor-parallel group: all of it must learn from the very same numbers.
        table = broadcast_in(self._topology.tp, tables[0])
        if self._config.shuffled:
            keys, shuffled = [prompts[i].key for i in places], self._config.shuffled
            table = shuffled_within_groups(table, candidates, self._weights, shuffled, keys, self._seed)
        # By the rank whose completion it is: the others do not have its text.
        told = [self._tell(prompts, places, candidates, fault) for fault in table.faults]
        gathered = gather_objects(self._topology.dp, (table.asked, told))
        first = next((line for _, lines in gathered for line in lines), None)
        if first is not None and self._config.bad_reward == "stop":
            # On all ranks, which have the same lines by now: one alone would leave the others in the next collective.
            raise UserError(first)
        asked: Counter[str] = Counter()
        for counts, _ in gathered:
            asked.update(counts)
        return Scored(self._rollouts(prompts, places, sampled, candidates, table), dict(asked))

    def _rollouts(
        self,
        prompts: Sequence[Prompt],
        places: Sequence[int],
        sampled: Sequence[Sequence[Completion]],
        candidates: Sequence[Candidate],
        table: RewardTable,
    ) -> list[Rollout]:
        size, config = self._config.group_size, self._config
        # The whole group, because its mates would be compared with the faulty reward.
        dropped = {fault.index // size for fault in table.faults}
        rollouts = []
        for at, completion in enumerate(completion for group in sampled for completion in group):
            prompt = prompts[places[at // size]]
            parts = {name: values[at] for name, values in table.parts.items() if name in self._weights}
            if config.overlong is not None:
                length = len(completion.token_ids)
                longest = self.sampler.most_tokens(len(prompt.token_ids), config.sampling)
                parts[OVERLONG] = overlong_penalty(length, longest, config.overlong.buffer, config.overlong.penalty)
            rollouts.append(
                Rollout(
                    prompt=prompt,
                    member=at % size,
                    completion=completion,
                    candidate=candidates[at],
                    reward=table.total[at] + parts.get(OVERLONG, 0.0),
                    parts=parts,
                    dropped=at // size in dropped,
                    masked=config.mask_truncated and not completion.finished,
                )
            )
        return rollouts

    def silent(self, rollouts: Sequence[Rollout]) -> list[int]:
        """Which of this rank's groups, by number, have nothing to compare: every reward is alike, or one is none."""
        size, whole = self._config.group_size, self._config.normalisation == "group"
        groups = [rollouts[at : at + size] for at in range(0, len(rollouts), size)]
        # Rewards that are compared one by one may differ where their sums do not.
        compared = [{r.reward if whole else tuple(r.parts.items()) for r in group} for group in groups]
        return [n for n, group in enumerate(groups) if group[0].dropped or len(compared[n]) == 1]

    def _tell(
        self, prompts: Sequence[Prompt], places: Sequence[int], candidates: Sequence[Candidate], fault: RewardFault
    ) -> str:
        """One line: which reward, of which completion, of which source, and what can be set."""
        key = prompts[places[fault.index // self._config.group_size]].key
        text = candidates[fault.index].raw
        shown = repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
        setting = f"`tune.{self._prompter.operation.name}.bad_reward: drop_group` leaves such groups out"
        return f"{fault} for the completion {shown} of source {key}; {setting}"
