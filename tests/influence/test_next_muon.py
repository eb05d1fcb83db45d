"""Muon's next step: what a sequence in the batch does to the reference loss, held to real steps in fp64."""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from synpro_engine.data import Batch
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.influence import Direction, DotInfluence, mean_gradient, next_step_direction
from synpro_engine.influence.directions import NextStep, displaced
from synpro_engine.influence.directions.next_muon import NextMuon
from synpro_engine.influence.first_order import plain_logprobs
from synpro_engine.model.canonical import block_slots, shard, unshard
from synpro_engine.model.model import Model
from synpro_engine.train import homes
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.muon_update import orthogonalised, pulled_back, size_of, update_scale
from synpro_engine.train.optimizer_config import MuonConfig, OptimizerConfig
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
    parts = step.parts(mean_gradient(model, [mates]))
    update = Direction({name: step.whole(name, part) for name, part in parts})
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


@pytest.mark.parametrize("muon", MUONS.values(), ids=MUONS)
@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-12, 0.0])
def test_what_is_too_short_pulls_back_as_if_it_were_longer_and_nothing_pulls_nothing(
    muon: MuonConfig, scale: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    ahead, along = (torch.randn(2, 12, 30, generator=generator) for _ in range(2))
    there, least = pulled_back(ahead, along, muon), size_of(ahead, muon)
    expected = there if scale else torch.zeros_like(there)
    torch.testing.assert_close(pulled_back(scale * ahead, along, muon, least), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(pulled_back(ahead, along, muon, 0.1 * least), there), "what is long enough is as it was"
    assert pulled_back(0.0 * ahead, along, muon).count_nonzero() == 0
    assert pulled_back(ahead * torch.nan, along, muon, least).isnan().all(), "what is not finite stays seen"


@pytest.fixture
def fresh(topology: Topology) -> tuple[Engine, NextMuon, Weights]:
    """(an engine that has no momentum yet, its Muon's next step, gradients of its matrices)."""
    engine = Engine(model_of(CONFIGS["olmo2"], topology), OptimizerConfig(name="muon", muon=MuonConfig(lr=0.02)))
    assert engine.muon is not None
    gradients = dict(mean_gradient(engine.model, [rows(4)]).tensors)
    return engine, NextMuon(engine, engine.muon), {name: gradients[name] for name in engine.muon.names}


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 0.0])
def test_a_sampled_step_without_a_momentum_does_not_rule_the_mean(
    scale: float, fresh: tuple[Engine, NextMuon, Weights]
) -> None:
    engine, step, gradients = fresh
    assert engine.muon is not None
    step.keep(gradients, 1.0)
    alone, beside = step.linear(gradients), NextMuon(engine, engine.muon)
    for factor in (1.0, scale):
        beside.keep(gradients, factor)
    for name, v in beside.linear(gradients).items():
        # Of a tenth of the root mean square, which is 0.71 of the other's length, J is 14 times as much.
        expected = 0.5 * (1.0 + (1.0 / 0.0707 if scale else 0.0)) * alone[name]
        assert (v - expected).norm() <= 5e-3 * expected.norm(), name


def test_the_mean_is_over_the_steps_that_were_kept_on_the_host(fresh: tuple[Engine, NextMuon, Weights]) -> None:
    engine, _, gradients = fresh
    assert engine.muon is not None
    others = {name: g.flip(0) for name, g in gradients.items()}
    singles, both = [NextMuon(engine, engine.muon) for _ in range(2)], NextMuon(engine, engine.muon)
    for one, sampled in zip(singles, (gradients, others), strict=True):
        one.keep(sampled, 0.5)
        both.update({name: 0.5 * g for name, g in sampled.items()}, keep=True)
    both.update(gradients, keep=False)
    kept = [sample for samples in both._sampled.values() for sample in samples]
    assert all(sample.ahead_BMN.device.type == "cpu" for sample in kept)
    assert sum(sample.ahead_BMN.numel() for sample in kept) == 2 * sum(g.numel() for g in gradients.values())
    along = {name: torch.ones_like(g) for name, g in gradients.items()}
    found, each = both.linear(along), [one.linear(along) for one in singles]
    for name, v in found.items():
        torch.testing.assert_close(v, (each[0][name] + each[1][name]) / 2, rtol=1e-4, atol=1e-5)


def test_what_is_only_kept_goes_one_way_and_is_not_written_to(
    fresh: tuple[Engine, NextMuon, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, step, gradients = fresh
    before, sent, real = {name: g.clone() for name, g in gradients.items()}, list[int](), homes._all_to_all

    def counted(message: Tensor, outward: list[int], inward: list[int]) -> Tensor:
        sent.append(message.numel())
        return real(message, outward, inward)

    monkeypatch.setattr(homes, "_all_to_all", counted)
    step.keep(gradients, 0.5)
    once = sum(g.numel() for g in gradients.values())
    assert sum(sent) == once
    assert all(torch.equal(g, before[name]) for name, g in gradients.items())
    step.update(gradients, keep=True)
    assert sum(sent) == 3 * once


def test_one_sampled_step_at_a_time_is_brought_back(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    muon = MuonConfig(lr=0.02, products="bfloat16")  # so that what is brought back in fp32 is another tensor
    engine, seen, alive = Engine(model_of(CONFIGS["olmo2"], topology), OptimizerConfig(name="muon", muon=muon)), [], []

    def watched(ahead: Tensor, *given: Any) -> Tensor:
        seen.append(weakref.ref(ahead))
        alive.append(sum(ref() is not None for ref in seen))
        return pulled_back(ahead, *given)

    monkeypatch.setattr("synpro_engine.influence.directions.next_muon.pulled_back", watched)
    next_step_direction(engine, [rows(5)], [[rows(seed)] for seed in range(3)])
    assert len(seen) % 4 == 0 and len(seen) > 4 and set(alive) == {1}


def test_a_step_along_the_direction_lowers_the_reference_loss_by_its_length(topology: Topology) -> None:
    settings: Any = OptimizerConfig(name="muon", lr=1e-8, muon=MuonConfig(lr=1e-8))
    engine = Engine(model_of(CONFIGS["olmo2"], topology), settings)
    model, reference = engine.model, [rows(5)]
    v = next_step_direction(engine, reference, [[rows(4)], [rows(6)]])
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    there = plus(weights, {name: tensor.double() for name, tensor in v.tensors.items()}, -1e-4)
    drop = float(loss64(model, reference[0], weights) - loss64(model, reference[0], there))
    assert drop == pytest.approx(1e-4, rel=0.05)
