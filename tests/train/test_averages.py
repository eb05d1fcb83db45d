"""Averages of weights: their own definitions, one share a rank, exchanged bit for bit, carried through checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from synpro_engine.config import UserError
from synpro_engine.dist import Topology
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.model.build import build_model, freeze_but_last
from synpro_engine.model.config import ModelConfig
from synpro_engine.train import averages
from synpro_engine.train.averages import share_of_newest
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint
from synpro_engine.train.checkpoint_files import whole_tensors
from synpro_engine.train.config import AverageConfig, EmaConfig, TrainConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.evaluation import held_out_loss
from synpro_engine.train.metrics import read_metrics
from synpro_engine.train.optimizer_config import OptimizerConfig
from synpro_engine.train.owned import owned_shards
from tests.train.test_layouts import LAYOUTS, SHAPE, batch_of, train
from tests.train.test_trainer import CONFIG, Killed, records, same
from tests.train.test_trainer import train as pretrain

# A large epsilon keeps Adam from blowing up rounding noise where layouts are compared.
OPTIMIZER = OptimizerConfig(lr=3e-3, eps=1e-3, clip=0.3)
KEPT: dict[Any, AverageConfig] = {"ema": EmaConfig(decay=0.7), "average": AverageConfig(start=2, every=2)}
LOSSES = CONFIG.model_copy(update={"ema": EmaConfig(decay=0.5), "average": AverageConfig(start=2)})


def engine_of(topology: Topology, seed: int = 0, **settings: Any) -> Engine:
    config = settings.pop("config", ModelConfig(family="olmo2", **SHAPE))
    model = build_model(config, topology, dtype=settings.pop("dtype", torch.float32), seed=seed)
    if blocks := settings.pop("trainable", None):
        freeze_but_last(model, blocks)
    return Engine(model, settings.pop("optimizer", OPTIMIZER), averages=settings.pop("kept", KEPT), **settings)


def masters(engine: Engine) -> Tensor:
    return torch.cat([shard.main.detach().flatten().clone() for shard in owned_shards(engine.optimizer)])


def weights(engine: Engine) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in engine.model.parameters()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_averages_are_those_of_the_master_weights_after_the_steps_that_count(
    topology: Topology, dtype: torch.dtype, name: Any
) -> None:
    engine = engine_of(topology, dtype=dtype, optimizer=OPTIMIZER.model_copy(update={"name": name}))
    after = []
    for step in range(6):
        train(engine, range(step, step + 1))
        after.append(masters(engine).double())
    factors = torch.tensor([0.7 ** (5 - i) for i in range(6)], dtype=torch.float64)
    ema = torch.stack(after).mul(factors[:, None]).sum(0) / factors.sum()
    for kind, expected in (("ema", ema), ("average", (after[3] + after[5]) / 2)):  # steps 4 and 6
        found = engine.averages[kind].memory
        assert found.dtype == torch.float32
        assert (found - expected).norm() <= 1e-6 * expected.norm(), kind


def test_an_average_is_one_fp32_number_beside_each_that_this_rank_updates(topology: Topology) -> None:
    engine = engine_of(topology, dtype=torch.bfloat16, trainable=1)
    owned = sum(shard.main.numel() for shard in owned_shards(engine.optimizer))
    assert 0 < owned < sum(p.numel() for p in engine.model.parameters())
    for average in engine.averages.values():
        assert average.memory.nbytes == average.memory.untyped_storage().nbytes() == 4 * owned


def test_an_exchange_takes_no_third_copy(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averages, "_EXCHANGED", 64)
    engine = engine_of(topology)
    train(engine, range(2))
    before = weights(engine)
    held: list[int] = []
    clone = Tensor.clone
    monkeypatch.setattr(Tensor, "clone", lambda self: held.append(self.numel()) or clone(self))
    with engine.holding("ema"):
        pass
    monkeypatch.undo()
    assert max(held) == 64 and equal(before, weights(engine))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trainable", [None, 1])
def test_the_model_holds_an_average_and_gets_its_own_weights_back_bit_for_bit(
    topology: Topology, dtype: torch.dtype, trainable: int | None
) -> None:
    engine, other = (engine_of(topology, dtype=dtype, trainable=trainable) for _ in range(2))
    train(engine, range(4))
    train(other, range(4))
    before, kept = weights(engine), engine.averages["ema"].memory.clone()
    with engine.holding("ema"):
        held = weights(engine)
        assert torch.equal(masters(engine), kept) and not equal(held, before)
        with pytest.raises(AssertionError, match="holds the ema of its weights"):
            train(engine, range(4, 5))
    assert equal(weights(engine), before) and torch.equal(engine.averages["ema"].memory, kept)
    with pytest.raises(Killed), engine.holding("average"):
        raise Killed
    assert equal(weights(engine), before)
    assert train(engine, range(4, 6)) == train(other, range(4, 6))


def test_an_average_without_weights_yet_is_the_weights_as_they_are(topology: Topology, tmp_path: Path) -> None:
    engine = engine_of(topology, kept={"average": AverageConfig(start=9)}, given="average")
    train(engine, range(2))
    before = weights(engine)
    with engine.holding("average"):
        assert equal(weights(engine), before)
    save_checkpoint(tmp_path / "c", engine)
    assert not [key for key in whole_tensors(tmp_path / "c" / "state") if "average" in key]
    plain = build_model(engine.model.config, topology, seed=None)
    load_checkpoint(tmp_path / "c", plain)
    assert equal(list(plain.parameters()), before)


def test_a_skipped_step_is_not_taken(topology: Topology) -> None:
    engine = engine_of(topology)
    train(engine, range(2))
    kept = engine.averages["ema"].memory.clone()
    broken = engine.model.final_norm_weight()
    assert broken is not None
    held = broken.detach().clone()
    broken.data[0] = torch.nan
    train(engine, range(2, 3))
    broken.data.copy_(held)
    assert engine.averages["ema"].taken == 2 and torch.equal(engine.averages["ema"].memory, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trainable", [None, 1])
def test_a_checkpoint_gives_the_weights_that_are_asked_for(
    topology: Topology, tmp_path: Path, dtype: torch.dtype, trainable: int | None
) -> None:
    engine = engine_of(topology, dtype=dtype, trainable=trainable, given="ema")
    train(engine, range(4))
    save_checkpoint(tmp_path / "c", engine)
    for name in ("raw", "ema", "average", None):
        loaded = build_model(engine.model.config, topology, dtype=dtype, seed=None)
        load_checkpoint(tmp_path / "c", loaded, weights=name)
        with engine.holding(name or "ema"):
            assert equal(list(loaded.parameters()), weights(engine)), name
    # An optimizer goes on from the average itself, and not from what the model's dtype leaves of it.
    later = engine_of(topology, seed=5, dtype=dtype, trainable=trainable)
    load_checkpoint(tmp_path / "c", later.model, later)
    assert torch.equal(masters(later), engine.averages["ema"].memory)
    with engine.holding("ema"):
        assert equal(weights(later), weights(engine))
    assert [average.taken for average in later.averages.values()] == [0, 0] and later.step_index == 4


def test_an_average_that_is_not_there_is_refused_by_name(topology: Topology, tmp_path: Path) -> None:
    engine = engine_of(topology, kept={"ema": EmaConfig()})
    train(engine, range(1))
    save_checkpoint(tmp_path / "c", engine)
    before = weights(engine)
    with pytest.raises(UserError, match="holds no average of its weights"):
        load_checkpoint(tmp_path / "c", engine.model, weights="average")
    assert equal(before, weights(engine))


def test_settings_name_averages_that_are_kept() -> None:
    for key in ("evaluate_with", "hand_on"):
        with pytest.raises(ValueError, match=f"{key}: ema is not kept"):
            TrainConfig.model_validate({"max_steps": 1, key: "ema"})
    config = TrainConfig(max_steps=1, ema=EmaConfig(), evaluate_with="ema")
    assert config.given == "ema" and list(config.averages) == ["ema"]
    assert config.model_copy(update={"hand_on": "raw"}).given == "raw"


def test_factors_are_a_plain_mean_at_first_and_a_constant_share_later() -> None:
    ema = EmaConfig(decay=0.99)
    assert share_of_newest(ema, 1) == share_of_newest(AverageConfig(), 1) == 1.0
    assert share_of_newest(ema, 5) == pytest.approx(1 / 5, rel=0.03)
    assert share_of_newest(ema, 2000) == pytest.approx(0.01, rel=1e-6)


def test_a_run_is_judged_by_the_weights_that_it_is_told_to_be(topology: Topology, tmp_path: Path) -> None:
    losses = {}
    for name in ("raw", "ema", "average"):
        config = LOSSES.model_copy(update={"evaluate_with": name})
        mixed = {"both": {"reference": 1.0, "validation": 1.0}}
        result = pretrain(topology, tmp_path / name, config, mixed=mixed)
        losses[name] = result.losses["reference"]
        evaluated = [r for r in read_metrics(tmp_path / name / "metrics.jsonl") if r["kind"] == "eval"]
        assert {r.get("weights", "raw") for r in evaluated} == {name}
    assert len(set(losses.values())) == 3
    # Training is the same whatever is evaluated: so are all its weights and averages.
    tensors = [whole_tensors(tmp_path / name / "checkpoints" / "step-00000006" / "state") for name in losses]
    assert all(torch.equal(tensors[0][key], other[key]) for other in tensors[1:] for key in tensors[0])


def test_a_killed_run_goes_on_with_the_same_bits_of_its_averages(topology: Topology, tmp_path: Path) -> None:
    config = LOSSES.model_copy(update={"evaluate_with": "average"})
    whole = pretrain(topology, tmp_path / "whole", config)
    with pytest.raises(Killed):
        pretrain(topology, tmp_path / "killed", config, die_before=5)
    again = pretrain(topology, tmp_path / "killed", config)
    assert same(whole, again) and records(tmp_path / "whole") == records(tmp_path / "killed")
    keys = whole_tensors(whole.checkpoint / "state").keys()
    assert any(key.startswith("optimizer.ema.") for key in keys)
    assert any(key.startswith("optimizer.average.") for key in keys)


def test_a_run_goes_on_only_with_the_averages_that_it_was_begun_with(topology: Topology, tmp_path: Path) -> None:
    pretrain(topology, tmp_path, LOSSES.model_copy(update={"max_steps": 2}))
    with pytest.raises(UserError, match=r"`ema\.decay` is 0\.5 there, 0\.9 here"):
        pretrain(topology, tmp_path, LOSSES.model_copy(update={"ema": EmaConfig(decay=0.9)}))


@pytest.mark.parametrize("begin", ["raw", "ema"])
def test_an_arm_goes_on_from_the_weights_that_it_is_told_to(topology: Topology, tmp_path: Path, begin: Any) -> None:
    first = pretrain(topology, tmp_path / "first", LOSSES.model_copy(update={"max_steps": 4}))
    arm = LOSSES.model_copy(update={"max_steps": 1, "plateau": None, "eval_every": 0})
    pretrain(topology, tmp_path / "arm", arm, start=first.checkpoint, start_weights=begin)
    stored = whole_tensors(first.checkpoint / "state")
    found = whole_tensors(tmp_path / "arm" / "checkpoints" / "step-00000005" / "state")
    key = "decoder.final_layernorm.weight"
    mean = found[f"optimizer.ema.{key}"]
    newest = found[f"optimizer.param.{key}"]
    # Its averages go on behind the weights that they are of, and begin anew behind an average.
    share = share_of_newest(LOSSES.averages["ema"], 5)
    torch.testing.assert_close(
        mean, stored[f"optimizer.ema.{key}"].lerp(newest, share) if begin == "raw" else newest, rtol=0, atol=1e-7
    )


def run_layouts(names: list[str], directory: Path, ports: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, port in zip(names, ports, strict=True):
        with job(LAYOUTS[name], port) as topology:
            engine = engine_of(topology)
            train(engine, range(4))
            held = engine.averages["ema"].memory.nbytes
            before = weights(engine)
            with engine.holding("average"):
                held_loss = train_loss(engine)
            assert equal(before, weights(engine)), name
            save_checkpoint(directory / name, engine)
            later = engine_of(topology, seed=9)
            load_checkpoint(directory / "one", later.model, later)
            train(later, range(4, 6))
            save_checkpoint(directory / f"{name} later", later)
            found[name] = (held, held_loss)
    return found


def begin_from_an_average(directory: Path, port: int) -> bool:
    """Whether an engine's weights are those of a model that is loaded alone; asserts that a parameter is cut."""
    shape = ModelConfig(family="olmo2", **SHAPE).model_copy(update={"layers": 3})
    with job(LAYOUTS["DP2"], port) as topology:
        engine, later = (engine_of(topology, seed=seed, config=shape) for seed in (0, 8))
        assert any(0 < s.stop - s.start < s.parameter.numel() for s in owned_shards(engine.optimizer))
        train(engine, range(2))
        save_checkpoint(directory, engine)
        plain = build_model(shape, topology, seed=None)
        load_checkpoint(directory, plain, weights="ema")
        load_checkpoint(directory, later.model, later, weights="ema")
        return equal(weights(later), list(plain.parameters()))


def test_a_weight_is_read_whole_from_an_average_of_which_a_rank_owns_a_part(tmp_path: Path) -> None:
    assert run_ranks(begin_from_an_average, 2, directory=tmp_path / "c", port=free_ports(1)[0]) == [True, True]


def near(key: str) -> float:
    """How far a tensor of a checkpoint may be from one process's, relative to its norm."""
    if key.startswith(("optimizer.ema", "optimizer.average")):
        return 1e-6
    moment = key.startswith("optimizer.exp_avg")
    square = 2 if key.startswith("optimizer.exp_avg_sq") else 1  # twice as far off as its gradient
    return square * (2e-5 if moment and "norm" in key else 1e-5)  # a norm's gradient is a sum of terms that cancel


def train_loss(engine: Engine) -> float:
    dp = engine.model.topology.dp
    return held_out_loss(engine.model, batch_of(50, dp.rank, dp.size), micro_batch=1)


@pytest.mark.parametrize(
    ("ranks", "names"),
    [
        (2, ["DP2", "TP2", "PP2", "CP2"]),
        (4, ["DP2 TP2"]),
        pytest.param(4, ["DP2 PP2 VP2", "TP2 PP2 VP2 SP", "CP2 DP2"], marks=pytest.mark.slow),
    ],
)
def test_layouts_average_like_one_process_and_go_on_from_each_other(
    topology: Topology, tmp_path: Path, ranks: int, names: list[str]
) -> None:
    engine = engine_of(topology)
    train(engine, range(4))
    save_checkpoint(tmp_path / "one", engine)
    with engine.holding("average"):
        loss = train_loss(engine)
    train(engine, range(4, 6))
    save_checkpoint(tmp_path / "one later", engine)
    whole = engine.averages["ema"].memory.nbytes
    found = run_ranks(run_layouts, ranks, names=names, directory=tmp_path, ports=free_ports(len(names)))
    for name in names:
        # One copy over all ranks, but for what tensor-parallel ranks each hold (norms) and padding.
        assert whole <= sum(of_rank[name][0] for of_rank in found) <= 1.1 * whole, name
        assert max(of_rank[name][0] for of_rank in found) < 0.8 * whole, name
        assert all(of_rank[name][1] == pytest.approx(loss, rel=1e-5) for of_rank in found)
        for suffix in ("", " later"):
            ours, theirs = (whole_tensors(tmp_path / f"{of}{suffix}" / "state") for of in (name, "one"))
            assert set(ours) == set(theirs)
            for key in theirs:
                error = (ours[key] - theirs[key]).norm() / theirs[key].norm()
                assert error < near(key), (name, key)
