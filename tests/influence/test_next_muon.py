"""Muon's next step: what a sequence in the batch does to the reference loss, held to real steps in fp64."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from synpro_engine.data import Batch
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.influence import Direction, DotInfluence, mean_gradient, next_step_direction
from synpro_engine.influence.directions import NextStep, displaced
from synpro_engine.influence.first_order import plain_logprobs
from synpro_engine.model.canonical import block_slots, shard, unshard
from synpro_engine.model.model import Model
from synpro_engine.train.config import MuonConfig, OptimizerConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.muon_update import orthogonalised, pulled_back, update_scale
from synpro_engine.train.owned import owned_shards
from synpro_kernels import orthogonalize_definition
from tests.influence.toy import CONFIGS, START, model_of, sequences

Weights = dict[str, Tensor]
MUONS = {
    "as it comes": MuonConfig(lr=0.02),
    "all else": MuonConfig(
        lr=2e-3, momentum=0.8, nesterov=False, steps=6, coefficients="polar_express", scale="adamw_rms",
        normalise_rows=True,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


def rows(seed: int, count: int = 4) -> Batch:
    ids = torch.randint(64, (count, 17), generator=torch.Generator().manual_seed(seed))
    return Batch(ids[:, :-1], ids[:, 1:])


def row_of(ids: list[int]) -> Batch:
    return Batch(torch.tensor([[START, *ids[:-1]]]), torch.tensor([ids]))


def loss64(model: Model, batch: Batch, weights: Weights) -> Tensor:
    """Mean cross-entropy through the plain decoder."""
    names = {id(p): name for name, p in model.named_parameters()}
    logprobs = plain_logprobs(model, batch.tokens_BS, batch.labels_BS, lambda p: weights[names[id(p)]])
    return -logprobs.mean()


def gradient64(model: Model, batch: Batch) -> Weights:
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    return dict(zip(weights, torch.autograd.grad(loss64(model, batch, weights), list(weights.values())), strict=True))


def orthogonal64(ahead: Tensor, muon: MuonConfig) -> Tensor:
    if muon.normalise_rows:
        ahead = ahead / ahead.norm(dim=1, keepdim=True)
    made = orthogonalize_definition(ahead, steps=muon.steps, coefficients=muon.coefficients)
    return made * update_scale(muon.scale, *ahead.shape)


def after_step64(engine: Engine, gradient: Weights) -> Weights:
    """The weights after the engine's next step with this gradient, written out."""
    model, config, muon = engine.model, engine.optimizer_config, engine.optimizer_config.muon
    states = {id(own.parameter): own.state for own in owned_shards(engine.optimizer)}
    kinds = {id(s.parameter): s.kind for block in model.blocks() for s in block_slots(model.config, block)}
    after = {}
    for name, p in model.named_parameters():
        g, kept = gradient[name], {k: t.double() for k, t in states[id(p)].items()}
        if "momentum" in kept:
            momentum = muon.momentum * kept["momentum"].view_as(g) + (1.0 - muon.momentum) * g
            ahead = muon.momentum * momentum + (1.0 - muon.momentum) * g if muon.nesterov else momentum
            parts = [orthogonal64(part, muon) for part in unshard(model.config, kinds[id(p)], [ahead])]
            moved = muon.lr * shard(model.config, kinds[id(p)], parts, 0, 1)
        else:
            first = config.beta1 * kept["exp_avg"].view_as(g) + (1.0 - config.beta1) * g
            second = config.beta2 * kept["exp_avg_sq"].view_as(g) + (1.0 - config.beta2) * g.square()
            step = float(kept["step"]) + 1.0
            root = (second / (1.0 - config.beta2**step)).sqrt() + config.eps
            moved = config.lr * first / (1.0 - config.beta1**step) / root
        after[name] = p.detach().double() - moved
    return after


def plus(weights: Weights, other: Weights, factor: float) -> Weights:
    return {name: tensor + factor * other[name] for name, tensor in weights.items()}


@pytest.mark.parametrize("muon", MUONS.values(), ids=MUONS)
@pytest.mark.parametrize("variant", ["olmo2", "qwen3"])
def test_the_score_is_what_a_trace_of_a_sequence_in_the_batch_does_to_the_reference_by_a_real_step(
    variant: str, muon: MuonConfig, topology: Topology
) -> None:
    """An epsilon that rules AdamW's denominators keeps its second moment, which the sequence moves too, out of it."""
    settings = OptimizerConfig(name="muon", lr=150.0, eps=1000.0, clip=0.0, weight_decay=0.0, muon=muon)
    engine = Engine(model_of(CONFIGS[variant], topology), settings)
    for seed in (1, 2, 3):
        engine.step([rows(seed)], LanguageModelLoss(), denominator=64.0)
    model, mates, reference, small = engine.model, rows(4), rows(5), 1e-6

    step = NextStep(engine)
    update = Direction(dict(step.sample(mean_gradient(model, [mates]))))
    with displaced(model, update, -1.0):
        ahead = mean_gradient(model, [reference])
    step.settle()
    # Directions are for AdamW's rate of 1 and its gradient before momentum takes a share of it.
    share = (1.0 - settings.beta1) / (1.0 - settings.beta1**4)
    v = step.linear(ahead).scaled(settings.lr * share)
    texts = [(ids * 16)[:16] for ids in sequences(5, seed=5, longest=16)]
    found = [score.value for score in DotInfluence(model, v, start_id=START).score(texts)]

    given, expected = gradient64(model, mates), []
    for ids in texts:
        text = gradient64(model, row_of(ids))
        after = [after_step64(engine, plus(given, text, weight)) for weight in (-small, small)]
        losses = [float(loss64(model, reference, weights)) for weights in after]
        expected.append((losses[0] - losses[1]) / (2.0 * small))
    assert found == pytest.approx(expected, rel=2e-3, abs=2e-3 * max(map(abs, expected)))
    # Neither kind of parameter is too small a part of it to be missed.
    assert engine.muon is not None
    parts = {name: abs(float((ahead.tensors[name] * tensor).sum())) for name, tensor in v.tensors.items()}
    matrices = sum(parts[name] for name in engine.muon.names)
    assert 0.1 < matrices / sum(parts.values()) < 0.9


@pytest.mark.parametrize("muon", MUONS.values(), ids=MUONS)
@pytest.mark.parametrize("shape", [(24, 24), (12, 30), (30, 12)])
def test_what_is_pulled_back_is_the_differential_of_the_update(muon: MuonConfig, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    ahead, along, change = (torch.randn(3, *shape, generator=generator, dtype=torch.float64) for _ in range(3))
    moved = [orthogonalised(ahead + size * change, muon, torch.float64) for size in (-1e-6, 1e-6)]
    expected = (along * (moved[1] - moved[0])).sum((1, 2)) / 2e-6
    found = (pulled_back(ahead, along, muon) * change).sum((1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_a_step_along_the_direction_lowers_the_reference_loss_by_its_length(topology: Topology) -> None:
    settings: Any = OptimizerConfig(name="muon", lr=1e-8, muon=MuonConfig(lr=1e-8))
    engine = Engine(model_of(CONFIGS["olmo2"], topology), settings)
    model, reference = engine.model, [rows(5)]
    v = next_step_direction(engine, reference, [[rows(4)], [rows(6)]])
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    there = plus(weights, {name: tensor.double() for name, tensor in v.tensors.items()}, -1e-4)
    drop = float(loss64(model, reference[0], weights) - loss64(model, reference[0], there))
    assert drop == pytest.approx(1e-4, rel=0.05)
