"""Judges as a run asks them: endpoints once for a tensor-parallel group, models in the job on all of its ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from synpro_engine.config import UserError, json_text
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle.external import fingerprint
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import IMPORT, Round
from synpro_engine.dist import Layout, Topology, gather_objects, on_first, on_main, say
from synpro_engine.reward import Composer, RewardConfig
from synpro_engine.reward.embedder import open_encoder
from synpro_engine.reward.head import load_head
from synpro_engine.reward.judges import Judge, apis_of
from synpro_engine.reward.judges import check_judges as check_endpoints
from synpro_engine.reward.judges import open_judges as judges_of
from synpro_engine.reward.judges.models import check_models, load_judges


def open_judges(
    reward: RewardConfig, cache: Path, topology: Topology, dtype: torch.dtype = torch.float32
) -> list[Judge]:
    """The judges that have a weight; answers are kept below `cache`, models in the job are of `dtype`. Collective.

    UserError, naming the key, for a server that has to be asked for its interfaces and does not answer.
    """

    def share(work: Callable[[], list[float]]) -> Sequence[float | None]:
        # The ranks of a tensor-parallel group hold the same candidates: one of them asks.
        return on_first(topology.tp, topology, work)

    wish, judges = topology.watch.wish, reward.remote
    # All by the same one, and asked for once.
    apis = on_main(topology, lambda: apis_of(judges)) if judges else {}
    remote = judges_of(
        judges, apis, share=share, ranks=topology.dp.size, cache=cache, asked_to_stop=lambda: wish.signal is not None
    )
    return remote + load_judges(reward.in_job, topology, dtype=dtype, hash_of=fingerprint, cache=cache)


def judge_versions(reward: RewardConfig, composer: Composer) -> dict[str, str]:
    """What gives each reward that has a weight, for the records of generation."""
    encoder = reward.judges.encoder
    if encoder is None or not reward.uses("similarity"):
        return composer.judges
    layer = "the last layer" if encoder.layer is None else f"layer {encoder.layer}"
    return composer.judges | {"similarity": f"encoder {fingerprint(encoder.encoder)[:16]}, {layer}"}


def check_judges(
    recipe: Recipe,
    directory: Path,
    topology: Topology,
    stages: Collection[str] | None = None,
    *,
    anew: Collection[str] = (),
) -> None:
    """Ask every judge once, before the first stage, if one of `stages` (of all) that will ask it is not done yet.

    anew: stages that will be made anew. Collective. UserError, naming the key, for one that does not answer as it
    should.
    """

    def is_open(stage: str) -> bool:
        # A finished run must be readable when its judges are long gone.
        done = stage not in anew and (directory / stage / MANIFEST).exists()
        return not done and (stages is None or stage in stages)

    def check() -> list[str]:
        layout, told = recipe.layout_of(IMPORT, topology.world_size), dict[str, None]()
        assert layout is not None
        for asked in _sets_of_judges(recipe, is_open):
            wanted = asked.reward.weighing(asked.weights, tuple(asked.also))
            try:
                told |= dict.fromkeys(check_all(wanted, layout, asked.max_chars, asked.max_new_tokens))
            except UserError as error:
                own = asked.reward.judges != recipe.reward.judges
                raise UserError(f"arms.{asked.arm}: {error}" if own else str(error)) from None
        return list(told)

    for line in on_main(topology, check):
        say(topology, line)


@dataclass(kw_only=True)
class _Asked:
    """Judges that one or several arms have alike, and what is asked of them."""

    arm: str
    """The first of those arms."""
    reward: RewardConfig
    weights: dict[str, dict[str, float]] = field(default_factory=dict)
    also: dict[str, None] = field(default_factory=dict)
    max_chars: int = 0
    max_new_tokens: int = 0


def _sets_of_judges(recipe: Recipe, is_open: Callable[[str], bool]) -> list[_Asked]:
    """What is asked of each set of judges by stages that are not done yet: arms may name judges of their own."""
    found: dict[str, _Asked] = {}
    for name in (name for name, arm in recipe.all_arms.items() if arm.in_rounds):
        own, rounds = recipe.of_arm(name), [Round(number, name) for number in range(1, recipe.rounds + 1)]
        judges = json_text([own.reward.judges.model_dump(mode="json"), own.reward.faithfulness_judge])
        asked = found.setdefault(judges, _Asked(arm=name, reward=own.reward))
        new = [own.generate.sampling.max_new_tokens, *(tune.sampling.max_new_tokens for tune in own.tune.values())]
        asked.max_chars = max(asked.max_chars, own.generate.max_chars)
        asked.max_new_tokens = max(asked.max_new_tokens, *new)
        for operation in own.generate.names:
            if any(is_open(this.generate(operation)) for this in rounds):
                _add_weights(asked.weights, operation, own.measured(operation))
                asked.also |= dict.fromkeys(own.asked_of_texts)
        for operation, tune in own.tune.items():
            if any(is_open(this.tune(operation)) for this in rounds):
                learnt = own.reward.weights(operation)
                _add_weights(asked.weights, operation, {n: w for n, w in learnt.items() if n not in tune.without})
    return list(found.values())


def _add_weights(weights: dict[str, dict[str, float]], operation: str, more: Mapping[str, float]) -> None:
    """Have what weighs anything in any arm, in tuning or in generation, weigh something."""
    known = weights.setdefault(operation, {})
    known |= {name: weight for name, weight in more.items() if weight or name not in known}


def check_all(reward: RewardConfig, layout: Layout, max_chars: int = 0, max_new_tokens: int = 0) -> list[str]:
    """Ask each endpoint and look at the files of models and encoders, for those judges that have a weight.

    layout: of the generator. max_chars, max_new_tokens: of the longest slices and texts. What was found out of
    endpoints, in a line each; UserError as `check_judges`.
    """
    check_models(reward.in_job, layout, hash_of=fingerprint, max_chars=max_chars, max_new_tokens=max_new_tokens)
    found = check_endpoints(reward.remote)
    if reward.faithfulness_judge is not None and reward.measures("faithfulness"):
        try:
            load_head(Path(reward.faithfulness_judge))
        except UserError as error:
            raise UserError(f"`reward.faithfulness_judge`: {error}") from None
    encoder = reward.judges.encoder
    if encoder is not None and reward.uses("similarity"):
        try:
            open_encoder(Path(encoder.encoder), encoder.layer)
        except UserError as error:
            raise UserError(f"`reward.judges.similarity.encoder`: {error}") from None
    return found


def asked_of_all(asked: Mapping[str, int], topology: Topology) -> Counter[str]:
    """What judges were asked, over all ranks. Collective."""
    total: Counter[str] = Counter()
    for part in gather_objects(topology.dp, dict(asked)):
        total.update(part)
    return total


def tell_judged(what: str, reward: RewardConfig, asked: Mapping[str, int], topology: Topology) -> None:
    """Say what the job's judges were asked, and what that cost where a price is set."""
    for judges in dict.fromkeys(key.partition("/")[0] for key in asked):
        counts = {key.partition("/")[2]: asked[key] for key in asked if key.startswith(f"{judges}/")}
        told = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts.items())
        cost = reward.cost(judges, counts)
        say(topology, f"{what}: judge of {judges}: {told}{'' if cost is None else f', cost {cost:.2f}'}")
