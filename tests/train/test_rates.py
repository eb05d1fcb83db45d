"""Rates of parts of a model: what each moves by and loses, and that a rate of nothing is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.layouts import check_recipe
from synpro_engine.data import Batch
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model, freeze_but_last
from synpro_engine.model.config import ModelConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig, RatesConfig

RATES = RatesConfig(embedding=0.25, output=2.0, vectors=4.0)


def moved(shape: ModelConfig, topology: Topology, config: OptimizerConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a step moves each parameter by."""
    model = build_model(shape, topology, dtype=dtype)
    before = {name: p.detach().double() for name, p in model.named_parameters()}
    ids = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(3))
    batch = Batch(ids[:, :-1], ids[:, 1:])
    Engine(model, config).step([batch], LanguageModelLoss(), denominator=64.0)
    return {name: p.detach().double() - before[name] for name, p in model.named_parameters()}


def rate(name: str, tied: bool) -> float:
    """Of a parameter, by its name."""
    if "word_embeddings" in name:
        return 0.25
    if "output_layer" in name:
        assert not tied
        return 2.0
    return 4.0 if "norm" in name or name.endswith("bias") else 1.0


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_part_moves_and_decays_at_its_own_rate(topology: Topology, shape: ModelConfig, name: Any, tied: bool) -> None:
    shape = shape.model_copy(update={"tie_embeddings": tied, "family": "qwen2"})
    config = OptimizerConfig(name=name, lr=1e-2, eps=1e-3, weight_decay=0.5)
    rates = RATES.model_copy(update={"output": 1.0}) if tied else RATES
    plain = moved(shape, topology, config, torch.float32)
    own = moved(shape, topology, config.model_copy(update={"rates": rates}), torch.float32)
    seen = set()
    for parameter, way in plain.items():
        times = rate(parameter, tied)
        seen.add(times)
        assert (own[parameter] - times * way).norm() <= 1e-4 * times * way.norm(), parameter
    assert seen == {0.25, 1.0, 4.0} | (set() if tied else {2.0})


def test_decoupled_decay_is_the_same_under_every_rate(topology: Topology, shape: ModelConfig) -> None:
    config = OptimizerConfig(lr=1e-12, weight_decay=0.1, decoupled_decay=True, rates=RATES)
    model = build_model(shape, topology)
    norms = {name: float(p.detach().double().norm()) for name, p in model.named_parameters()}
    for parameter, way in moved(shape, topology, config, torch.float32).items():
        lost = 0.0 if "word_embeddings" in parameter else 0.1
        assert float(way.norm()) == pytest.approx(lost * norms[parameter], rel=1e-4, abs=1e-6), parameter


def test_a_rate_of_which_nothing_trains_is_refused(topology: Topology, shape: ModelConfig) -> None:
    tied = build_model(shape.model_copy(update={"tie_embeddings": True}), topology)
    with pytest.raises(UserError, match=r"`optimizer\.rates\.output`: nothing that it is of.*tied to the embedding"):
        Engine(tied, OptimizerConfig(rates=RATES))
    frozen = build_model(shape, topology)
    freeze_but_last(frozen, 1)
    with pytest.raises(UserError, match=r"`optimizer\.rates\.embedding`: nothing that it is of trains here$"):
        Engine(frozen, OptimizerConfig(rates=RATES))


def test_a_rate_that_a_recipe_cannot_use_is_refused_before_its_first_stage() -> None:
    tied = ["model.tie_embeddings=true", "pretrain.optimizer.rates.output=2"]
    tuned = ["tune.rephrase.train_last_blocks=1", "tune.rephrase.optimizer.rates.embedding=2"]
    for settings, key in (
        (tied, "pretrain.optimizer.rates.output"),
        (tuned, "tune.rephrase.optimizer.rates.embedding"),
    ):
        with pytest.raises(UserError, match=rf"^`{key}`: "):
            check_recipe(load_recipe("smoke", settings), 1)
