"""What tuning and generation are made from, and the rewards over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from synpro_engine.backend import platform
from synpro_engine.cycle.settings import SynthesisSettings
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.cycle.steps.judging import open_judges
from synpro_engine.cycle.steps.probe import load_probe
from synpro_engine.cycle.steps.weights import load_model
from synpro_engine.data import stable_hash, start_id
from synpro_engine.dist import Topology
from synpro_engine.influence import TextInfluence, build_estimator, text_likelihood
from synpro_engine.reward import Composer, build_composer
from synpro_engine.reward.judges.in_job import ModelClient
from synpro_engine.train.parking import Reading


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The finished stages that tuning and generation read."""

    tokens: Path
    theta: Path
    probe: Path
    base: Path
    """The generator as imported: the judge of fluency, and the holder of the tokenizer."""
    generator: Path
    """The generator to start from (tune) or to sample from (generate)."""
    judges: Path
    """Where answers of remote judges are kept: of the run, for all of its stages."""
    served: Path
    """Where weights lie that a server generates with, likewise."""


class Rewards(NamedTuple):
    """What scores texts, and the models and directions that it reads."""

    composer: Composer
    reads: Reading


def build_rewards(settings: SynthesisSettings, inputs: Inputs, topology: Topology) -> Rewards:
    """The rewards over the models of this round; those without weight load nothing."""
    dtype, reward = platform.resolve_dtype(settings.dtype), settings.own_reward
    pretrained = open_tokenizer(inputs.tokens, topology)
    generators, reads = open_tokenizer(inputs.base, topology), Reading()
    influence_of: TextInfluence | None = None
    likelihood_of: Callable[[Sequence[str]], list[float]] | None = None
    # A model of theta's size, twice, only where its answer has a weight.
    if reward.uses("influence"):
        theta = load_model(inputs.theta, topology, dtype)
        probe = load_probe(inputs.probe, theta, dtype)
        influence = build_estimator(settings.influence, theta, probe, start_id=start_id(pretrained))
        # With one tokenizer a text was encoded when it was read, and need not be again.
        same = generators.encoding == pretrained.encoding
        influence_of = TextInfluence(influence, pretrained.encode, same_tokenizer=same)
        reads += influence.reads()
    if reward.measures("quality"):
        judge = load_model(inputs.base, topology, dtype)
        likelihood_of = text_likelihood(judge, generators.encode, start_id=start_id(generators))
        reads += Reading((judge,))
    judges = open_judges(reward, inputs.judges, topology, dtype)
    clients = {id(judge.client): judge.client for judge in judges}.values()
    reads += Reading(tuple(client.model for client in clients if isinstance(client, ModelClient)))
    composer = build_composer(
        reward, influence_of=influence_of, likelihood_of=likelihood_of, judges=judges, device=topology.device
    )
    return Rewards(composer, reads)


def round_seed(settings: SynthesisSettings) -> int:
    """A seed of its own for each round, or a later round would write the first one's texts again."""
    seed, number = settings.seed, settings.round
    return seed if number == 1 else stable_hash(seed, "round", str(number)) >> 1
