"""How far estimators agree as the displacement shrinks, and where rounding takes over.

Along one probe's displacement v, scaled by 1, 1/2, 1/4, ...: each estimator against two forwards in fp64 through the
plain decoder, which shares no code with the others but the parameters. Knows scores; no optimizer step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks.common.rank_correlation import Floats, spearman
from benchmarks.influence_truth.scores import walk_probe
from benchmarks.influence_truth.setup import Setup
from synpro_engine.config import UserError
from synpro_engine.influence import (
    Direction,
    DotInfluence,
    Estimator,
    FiniteDifferenceInfluence,
    JvpInfluence,
    TwoForwardInfluence,
)
from synpro_engine.influence.batching import by_sequence
from synpro_engine.influence.first_order import plain_logprobs
from synpro_engine.model.build import build_model
from synpro_engine.model.model import Model
from synpro_engine.model.state import canonical_state, load_canonical


def sweep(setup: Setup) -> Iterator[dict[str, object]]:
    """One record for each scale of the displacement of the paper's probe."""
    settings, theta = setup.settings, setup.engine().model
    probe = walk_probe(setup, "reference", keep_momentum=settings.walks_keep_momentum, weight_decay=0.1)
    v = probe.at[settings.probe_steps[-1]]
    every = max(1, len(setup.candidates) // settings.checked)
    given = [candidate.ids for candidate in setup.candidates[::every]]
    half = build_model(settings.model, setup.topology, seed=None, dtype=torch.bfloat16)
    load_canonical(half, canonical_state(theta))
    linear = _values(DotInfluence(theta, v, start_id=setup.start_id), given)
    before = _losses(setup, theta, None, given)
    moved, whole = (
        torch.cat([tensor.detach().flatten() for tensor in tensors]).norm()
        for tensors in (v.tensors.values(), theta.parameters())
    )
    for scale in (2.0**-n for n in range(settings.scales)):
        scaled = v.scaled(scale)
        true = before - _losses(setup, theta, scaled, given)
        found = {
            "two_forward, fp32": _values(TwoForwardInfluence(theta, scaled, start_id=setup.start_id), given),
            "two_forward, bf16": _values(TwoForwardInfluence(half, scaled, start_id=setup.start_id), given),
            "dot at theta": scale * linear,
            "dot at midpoint": _values(DotInfluence(theta, scaled, start_id=setup.start_id, at="midpoint"), given),
            "jvp at midpoint": _values(JvpInfluence(theta, scaled, start_id=setup.start_id, at="midpoint"), given),
        }
        yield {
            "row": "sweep",
            "scale": scale,
            "relative_size": scale * float(moved / whole),
            "mean_influence": float(np.abs(true).mean()),
            "errors": {name: float(np.linalg.norm(x - true) / np.linalg.norm(true)) for name, x in found.items()},
            "spearman": {name: spearman(x, true) for name, x in found.items()},
        }


def refused_in_half_precision(setup: Setup) -> bool:
    """Whether finite differences say no to a bf16 model, as they should."""
    half = build_model(setup.settings.model, setup.topology, dtype=torch.bfloat16)
    try:
        FiniteDifferenceInfluence(half, Direction({}), start_id=setup.start_id)
    except (ValueError, UserError):
        return True
    return False


def _values(estimator: Estimator, given: Sequence[Sequence[int]]) -> Floats:
    return np.array([score.value for score in estimator.score(given)])


@torch.no_grad()
def _losses(setup: Setup, model: Model, v: Direction | None, given: Sequence[Sequence[int]]) -> Floats:
    """Mean cross-entropy of each sequence at theta - v, in fp64."""
    weights = {parameter: parameter.double() for parameter in model.parameters()}
    if v is not None:
        for name, parameter in model.named_parameters():
            weights[parameter] -= v.tensors[name].double()
    batches = setup.batches(given, setup.settings.batch)
    values = [plain_logprobs(model, batch.tokens_BS, batch.labels_BS, weights.__getitem__) for batch in batches]
    parted = by_sequence([len(ids) for ids in given], batches, values)
    return np.array([-float(logprob_T.mean()) for logprob_T in parted])
