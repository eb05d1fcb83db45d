"""Weight decay: what a weight loses in a step, how that moves with the steps, and that a run goes on with it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from synpro_engine.config import UserError, load_config
from synpro_engine.data import Batch
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LossTerms
from synpro_engine.train.optimizer import decay_at
from synpro_engine.train.optimizer_config import DecayScheduleConfig, MuonConfig, OptimizerConfig, ScheduleConfig
from tests.train.test_trainer import CONFIG, Killed, records, same, train

LINEAR = DecayScheduleConfig(kind="linear", final=0.2, hold_steps=10, total_steps=110)


def decays(schedule: DecayScheduleConfig, *steps: int) -> list[float]:
    config = OptimizerConfig(weight_decay=1.0, decay_schedule=schedule)
    return [decay_at(config, step) for step in steps]


def test_it_moves_between_its_two_steps_alone() -> None:
    assert decays(LINEAR, 0, 10, 35, 60, 110, 5000) == pytest.approx([1.0, 1.0, 0.8, 0.6, 0.2, 0.2])
    cosine = LINEAR.model_copy(update={"kind": "cosine"})
    assert decays(cosine, 10, 35, 60, 110, 111) == pytest.approx([1.0, 0.2 + 0.8 * (2 + 2**0.5) / 4, 0.6, 0.2, 0.2])
    assert decays(DecayScheduleConfig(), 0, 7) == [1.0, 1.0]


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_it_may_rise(kind: Any) -> None:
    found = decays(DecayScheduleConfig(kind=kind, final=3.0, total_steps=10), *range(12))
    assert found[0] == 1.0 and found[-2:] == [3.0, 3.0] and all(a < b for a, b in pairwise(found[:-1]))


def nothing(model: Model, hidden_BSH: Tensor, batch: Batch) -> LossTerms:
    """A loss without a gradient, under which a step only decays."""
    value = 0.0 * model.logprobs_from_hidden(hidden_BSH, batch.labels_BS).logprob.sum()
    return LossTerms(objective=value, loss=value)


def shares_lost(shape: ModelConfig, topology: Topology, config: OptimizerConfig, steps: int) -> list[dict[str, float]]:
    """What each parameter's length loses in each step, as a share; warm-up over two steps, so half a rate first."""
    model = build_model(shape, topology)
    engine, ids = Engine(model, config, schedule=ScheduleConfig(warmup_steps=2)), torch.arange(64).view(4, 16)
    found = []
    for _ in range(steps):
        before = {name: p.detach().double().norm() for name, p in model.named_parameters()}
        result = engine.step([Batch(ids, ids)], nothing, denominator=1.0)
        assert result.weight_decay == decay_at(config, result.step - 1)
        after = {name: p.detach().double().norm() for name, p in model.named_parameters()}
        found.append({name: float(1 - after[name] / norm) for name, norm in before.items()})
    return found


def is_of_muon(name: str) -> bool:
    return ".layers." in name and "linear" in name


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_weight_loses_its_rate_s_share_or_the_schedule_s(
    topology: Topology, shape: ModelConfig, name: Any, decoupled: bool
) -> None:
    schedule = DecayScheduleConfig(kind="linear", final=0.0, total_steps=4)
    config = OptimizerConfig(
        name=name, lr=0.05, muon=MuonConfig(lr=0.2), weight_decay=0.4, decay_schedule=schedule,
        decoupled_decay=decoupled,
    )  # fmt: skip
    for step, lost in enumerate(shares_lost(shape, topology, config, 5)):
        decay, factor = 0.1 * (4 - step), min(1.0, (step + 1) / 2)
        for parameter, share in lost.items():
            peak = 1.0 if decoupled else 0.2 if name == "muon" and is_of_muon(parameter) else 0.05
            expected = 0.0 if "word_embeddings" in parameter else factor * peak * decay
            assert share == pytest.approx(expected, abs=1e-6), (step, parameter)


def test_decoupled_decay_does_not_know_the_rate(topology: Topology, shape: ModelConfig) -> None:
    found = [
        shares_lost(shape, topology, OptimizerConfig(lr=lr, weight_decay=0.3, decoupled_decay=True), 2)
        for lr in (1e-5, 1.0)
    ]
    for low, high in zip(*found, strict=True):
        assert low == pytest.approx(high, abs=1e-6)


def test_a_constant_decay_is_the_one_that_ever_was(topology: Topology, shape: ModelConfig) -> None:
    """To the bit what groups were given when decay had no schedule."""
    engine = Engine(build_model(shape, topology), OptimizerConfig(weight_decay=0.3))
    ids = torch.arange(64).view(4, 16)
    engine.step([Batch(ids, ids)], nothing, denominator=1.0)
    assert {group["weight_decay"] for group in engine.optimizer.param_groups} == {0.0, 0.3}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_killed_run_goes_on_with_its_decay_to_the_bit(topology: Topology, tmp_path: Path, name: Any) -> None:
    schedule = DecayScheduleConfig(kind="cosine", final=2.0, hold_steps=1, total_steps=5)
    update = {"name": name, "weight_decay": 0.5, "decay_schedule": schedule}
    config = CONFIG.model_copy(update={"optimizer": CONFIG.optimizer.model_copy(update=update)})
    whole = train(topology, tmp_path / "whole", config)
    with pytest.raises(Killed):
        train(topology, tmp_path / "killed", config, die_before=5)
    assert same(whole, train(topology, tmp_path / "killed", config))
    assert records(tmp_path / "whole") == records(tmp_path / "killed")
    logged = [record["weight_decay"] for record in records(tmp_path / "whole") if record["kind"] == "train"]
    assert logged == [decay_at(config.optimizer, step) for step in range(6)] and logged[0] == 0.5 and logged[-1] == 2.0


def test_another_decay_is_another_run(topology: Topology, tmp_path: Path) -> None:
    train(topology, tmp_path)
    changed = CONFIG.optimizer.model_copy(update={"decoupled_decay": True})
    with pytest.raises(UserError, match=r"settings: `optimizer\.decoupled_decay` is False there"):
        train(topology, tmp_path, CONFIG.model_copy(update={"optimizer": changed}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight_decay": 3.1}, "weight_decay"),
        ({"decay_schedule": {"kind": "linear"}}, "total_steps above hold_steps"),
        ({"decay_schedule": {"kind": "cosine", "hold_steps": 5, "total_steps": 5}}, "total_steps above hold_steps"),
        ({"weight_decay": 1.0, "decoupled_decay": True}, "weight_decay: with decoupled_decay 1.0 takes all"),
        (
            {"decay_schedule": {"kind": "linear", "total_steps": 9, "final": 2.0}, "decoupled_decay": True},
            "decay_schedule.final: with decoupled_decay 2.0 takes all",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(settings: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(OptimizerConfig, settings)
