"""The two models that influence is measured between, wherever they lie, and the tokenizer they read text with.

They are named by a run or by their directories: stages, checkpoints, or for the probe a stored direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from synpro_engine.backend import platform
from synpro_engine.config import UserError, read_manifest
from synpro_engine.cycle.cycle import Cycle
from synpro_engine.cycle.run_layout import TOKENIZE
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.cycle.steps.probe import is_tangent, load_probe, load_reference_directions
from synpro_engine.cycle.steps.weights import load_model, recorded_tokenizer, stage_checkpoint
from synpro_engine.data import Tokenizer, check_rows, load_tokenizer, start_id
from synpro_engine.dist import Topology, on_main, verify_shared
from synpro_engine.influence import Estimator, EstimatorConfig, build_estimator


@dataclass(frozen=True, kw_only=True)
class ModelPair:
    """theta and its probe, as artifacts that are there: stages or checkpoints; the probe may be a stored direction."""

    theta: Path
    probe: Path
    tokenizer: Tokenizer
    dtype: torch.dtype
    """Of the weights when they are loaded."""

    @classmethod
    def of_run(cls, cycle: Cycle, probe: Path | None = None) -> ModelPair:
        """A run's theta and its newest probe; UserError when there is no probe yet.

        probe: stands in its place, and goes with the newest weights that a round starts from.
        """
        if probe is None:
            theta, probe = (cycle.directory / stage for stage in cycle.probe_pair)
        else:
            theta = cycle.directory / cycle.newest_theta
        stage = cycle.directory / TOKENIZE
        # Collective, and before rank 0 opens the tokenizer alone: hashing is shared out, and shards are large.
        verify_shared(stage, cycle.topology)
        tokenizer = open_tokenizer(stage, cycle.topology)
        return cls(theta=theta, probe=probe, tokenizer=tokenizer, dtype=platform.resolve_dtype(cycle.recipe.dtype))

    @classmethod
    def of_paths(cls, theta: Path, probe: Path, tokenizer: Path | None, topology: Topology) -> ModelPair:
        """theta and the probe by their directories, in the precision that theta was saved in. Collective.

        tokenizer: None takes the one that theta's run recorded. Raises UserError where that is none, where theta and
        the probe are the same weights, and for a directory that holds neither weights nor a direction.
        """
        read, dtype = reading_of(theta, tokenizer, topology)
        pair = cls(theta=theta, probe=probe, tokenizer=read, dtype=dtype)
        hashes = pair.hashes(topology)
        # By content: two copies of one checkpoint are as wrong as one path given twice.
        if hashes["theta"] == hashes["probe"]:
            raise UserError(f"{probe}: is theta itself, so that every influence would be 0; --probe takes another one")
        return pair

    def hashes(self, topology: Topology) -> dict[str, str]:
        """Content hashes of `theta` and `probe`, as rank 0 reads them. Collective."""
        places = {"theta": self.theta, "probe": self.probe}
        return on_main(topology, lambda: {name: read_manifest(path).content_hash for name, path in places.items()})

    def resolved(self, config: EstimatorConfig, topology: Topology) -> EstimatorConfig:
        """The settings with what the kind of probe decides, as rank 0 finds it. Collective.

        UserError where they do not go together.
        """

        def resolve() -> EstimatorConfig:
            try:
                return config.resolved(tangent=is_tangent(self.probe))
            except ValueError as error:
                raise UserError(f"{self.probe}: {error}") from error

        return on_main(topology, resolve)

    def estimator(self, config: EstimatorConfig, topology: Topology) -> Estimator:
        """Load both and build the estimator; nothing is remembered between its calls. Collective.

        Raises UserError where the two do not fit each other, the tokenizer or the layout.
        """
        theta = load_model(self.theta, topology, self.dtype)
        check_rows(self.tokenizer, theta.config.vocab_size, str(self.theta), "; see --tokenizer")
        probe = load_probe(self.probe, theta, self.dtype)
        # A stage of several references has the direction of each too.
        others = load_reference_directions(self.probe, theta)
        # Each document comes once, so remembering scores would only take memory.
        return build_estimator(config, theta, probe, start_id=start_id(self.tokenizer), keep=0, others=others)


def reading_of(theta: Path, tokenizer: Path | None, topology: Topology) -> tuple[Tokenizer, torch.dtype]:
    """The tokenizer that theta reads text with, and the precision that it was saved in. Collective.

    tokenizer: None takes the one that theta's run recorded; UserError where that is none.
    """
    checkpoint = stage_checkpoint(theta, topology)
    saved = on_main(topology, lambda: read_manifest(checkpoint).config["dtype"])
    if tokenizer is None:
        tokenizer = on_main(topology, lambda: recorded_tokenizer(theta))
        verify_shared(tokenizer.parent, topology)
    return on_main(topology, partial(load_tokenizer, tokenizer)), platform.resolve_dtype(saved)
