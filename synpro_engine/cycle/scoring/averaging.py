"""The mean of finished models as a model of its own, streamed tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError, check_replaceable, new_artifact, outside_artifacts
from synpro_engine.cycle.run_layout import CHECKPOINT, TOKENIZER
from synpro_engine.cycle.scoring.member import Member, check_same_model, open_members
from synpro_engine.dist import Topology, progress, say
from synpro_engine.model.canonical import canonical_shapes
from synpro_engine.model.hf import KIND as PUBLISHED
from synpro_engine.model.mean import average_published, normalised
from synpro_engine.storage import is_remote, writing_to
from synpro_engine.train.checkpoint_mean import SavedWeights, average_checkpoints
from synpro_engine.train.config import WeightsOf

KIND = "average"
"""Of the artifact: a checkpoint and the tokenizer that goes with it, as a stage has them."""


def average_models(
    places: Sequence[str],
    shares: Sequence[float],
    output: str,
    tokenizer: Path | None,
    weights: WeightsOf | None,
    topology: Topology,
) -> None:
    """Write the mean of models of one shape and tokenizer, all checkpoints or all Hugging Face directories.

    places, output: paths or addresses. shares: of each in the mean, in any unit; none: equal. weights: which of
    checkpoints that have averages; None: those that each hands on. For a job of one process. UserError names the
    tensor, setting or tokenizer that does not fit, and an `output` that holds something else.
    """
    if topology.world_size > 1:
        raise UserError("average: streams tensors through one process; start it as one")
    if len(places) < 2:
        raise UserError("average: give two models or more")
    parts = normalised(shares, len(places))
    members = open_members(places, tokenizer, topology)
    check_same_model(members)
    _check_read_alike(members)
    first = members[0]
    if first.published and weights is not None:
        raise UserError("--weights: is for checkpoints; a Hugging Face directory holds one set of weights")
    kind = PUBLISHED if first.published else KIND
    if not is_remote(output):
        check_replaceable(Path(output), kind)
        outside_artifacts(Path(output).resolve().parent)
    with (
        writing_to(output, kind, topology) as path,
        progress(len(canonical_shapes(first.config)), "average", "tensors", topology) as bar,
    ):
        if first.published:
            directories = [member.weights for member in members]
            average_published(directories, parts, first.config, first.tokenizer, path, topology, bar.update)
        else:
            sources = [SavedWeights(member.weights, weights) for member in members]
            bar.total = len(sources[0].names)  # some are fused
            settings = {"models": list(places), "shares": parts}
            with new_artifact(path, KIND, settings) as folder:
                # Where it is found in the checkpoints themselves.
                extra: dict[str, Any] = {"config": {"separate_documents": True}} if first.apart else {}
                average_checkpoints(sources, parts, folder / CHECKPOINT, bar.update, extra)
                first.tokenizer.save(folder / TOKENIZER)
    say(topology, f"{output}: the mean of {len(places)} models")


def _check_read_alike(members: Sequence[Member]) -> None:
    """UserError where documents of a window see each other in some and not in others: nobody would know of the mean."""
    first = members[0]
    for other in members[1:]:
        if other.apart != first.apart:
            ours, theirs = ("apart" if one.apart else "together" for one in (first, other))
            raise UserError(
                f"{other.place}: read documents of a window {theirs} (`separate_documents`), {first.place} {ours};"
                " a mean of both reads neither way"
            )
