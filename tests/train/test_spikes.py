"""A step far above the last ones is told, left out or ends the run, with what it read and where the gradient was."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.data import Batch
from synpro_engine.dist import ParallelConfig, Topology
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.train.config import SpikeConfig
from synpro_engine.train.divergence import DivergedError
from synpro_engine.train.engine import Engine
from synpro_engine.train.layer_norms import gradient_norms, told
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.metrics import METRICS, read_metrics
from synpro_engine.train.optimizer_config import OptimizerConfig
from synpro_engine.train.run_state import PretrainResult
from synpro_engine.train.spikes import SpikeGuard
from synpro_engine.train.trainer import pretrain
from tests.train import test_trainer as toy
from tests.train.louder import Louder

CONFIG = toy.CONFIG.model_copy(update={"max_steps": 12, "eval_every": 0, "checkpoint_every": 0, "plateau": None})
SPIKE = SpikeConfig(window=8, norm=5.0)


def train(topology: Topology, directory: Path, *steps: int, **settings: Any) -> PretrainResult:
    config = CONFIG.model_copy(update={"spike": SPIKE} | settings)
    return pretrain(
        build_model(toy.SHAPE, topology), config, toy.loader_of(topology), directory,
        held_out=toy.held_out(topology), watcher=Louder(20.0, *steps),
    )  # fmt: skip


def kinds(directory: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(directory / METRICS) if record["kind"] == kind]


def test_a_spike_is_told_with_its_documents_and_layers_and_training_goes_on(
    topology: Topology, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(topology, tmp_path, 10).skipped == 0
    [record] = kinds(tmp_path, "spike")
    assert record["step"] == 10 and record["documents"]
    assert "above the last steps' median" in record["why"]
    assert list(record["layers"]) == ["embedding", "layer 0", "layer 1", "output"]
    assert math.isclose(sum(norm**2 for norm in record["layers"].values()) ** 0.5, record["grad_norm"], rel_tol=1e-5)
    assert "step 10: loss" in capsys.readouterr().err


def test_a_spike_that_is_skipped_changes_nothing(topology: Topology, tmp_path: Path) -> None:
    result = train(topology, tmp_path / "skips", 10, spike=SPIKE.model_copy(update={"action": "skip"}))
    assert result.skipped == 1
    [record] = kinds(tmp_path / "skips", "skipped")
    assert record["step"] == 10 and record["loss"] > 20
    # As if the step had not been finite, which is skipped in any case.
    config = CONFIG.model_copy(update={"spike": None})
    pretrain(
        build_model(toy.SHAPE, topology), config, toy.loader_of(topology), tmp_path / "nan",
        held_out=toy.held_out(topology), watcher=Louder(math.nan, 10),
    )  # fmt: skip
    losses = [[r["loss"] for r in kinds(tmp_path / name, "train") if r["step"] > 10] for name in ("skips", "nan")]
    assert losses[0] == losses[1]


def test_a_run_that_stops_at_a_spike_goes_on_without_it_when_told_to_skip(topology: Topology, tmp_path: Path) -> None:
    settings = {"checkpoint_every": 3}
    with pytest.raises(DivergedError, match="stopped at step 10, before its update: loss"):
        train(topology, tmp_path / "run", 10, spike=SPIKE.model_copy(update={"action": "stop"}), **settings)
    skip = SPIKE.model_copy(update={"action": "skip"})
    train(topology, tmp_path / "run", 10, spike=skip, **settings)
    train(topology, tmp_path / "whole", 10, spike=skip, **settings)
    assert kinds(tmp_path / "run", "train")[9:] and toy.records(tmp_path / "run") == toy.records(tmp_path / "whole")


def test_the_first_steps_are_held_to_nothing_and_the_last_to_their_medians() -> None:
    guard = SpikeGuard(SpikeConfig(window=8, loss=1.0, norm=4.0))
    for loss in (9.0, 2.0, 2.1, 2.0, 1.9, math.nan, 2.0, 2.0):
        assert guard.fault(99.0, 99.0) is None
        guard.add(loss, 1.0)
    guard.add(2.0, 1.0)
    assert guard.fault(3.0, 3.9) is None
    assert "loss 3.1 is more than 1 above" in str(guard.fault(3.1, 1.0))
    assert "gradient norm 4.1 is over 4 times" in str(guard.fault(2.0, 4.1))
    other = SpikeGuard(SpikeConfig(window=8, loss=1.0, norm=4.0))
    other.load_state_dict(guard.state_dict())
    assert other.state_dict() == guard.state_dict() and other.fault(3.1, 1.0) == guard.fault(3.1, 1.0)


def test_what_stands_out_is_named() -> None:
    assert told({"embedding": 1.0, "layer 0": math.nan, "layer 1": 2.0}) == "its gradient is not finite in layer 0"
    assert told({"embedding": 1.0, "layer 0": 3.0}) == "90% of its squared gradient is in layer 0"
    assert told({f"layer {i}": math.inf for i in range(5)}).endswith("in layer 0, layer 1, layer 2 and 2 more")


def _norms(topology: Topology, *, clip: float = 0.1, half: bool = False) -> dict[str, float]:
    model = build_model(toy.SHAPE, topology, dtype=torch.bfloat16 if half else torch.float32)
    engine = Engine(model, OptimizerConfig(clip=clip))
    ids = torch.randint(toy.SHAPE.vocab_size, (4, 9), generator=torch.Generator().manual_seed(1))
    dp = topology.dp
    batch = Batch(ids[:, :-1], ids[:, 1:]).rows(4 * dp.rank // dp.size, 4 * (dp.rank + 1) // dp.size)
    result = engine.step([batch], LanguageModelLoss(), denominator=32.0)
    return gradient_norms(engine, result.grad_norm)


LAYOUTS: list[dict[str, Any]] = [{"tp": 2}, {"pp": 2}, {}, {"tp": 2, "sequence_parallel": True}]


def _in_layouts(ports: list[int]) -> list[dict[str, float]]:
    found = []
    for layout, port in zip(LAYOUTS, ports, strict=True):
        with job(ParallelConfig.model_validate(layout), port) as topology:
            found.append(_norms(topology))
    return found


def test_norms_by_layer_are_those_of_one_process_in_every_layout(topology: Topology) -> None:
    alone = _norms(topology)
    assert len(alone) == toy.SHAPE.layers + 2
    for of_rank in run_ranks(_in_layouts, 2, ports=free_ports(len(LAYOUTS))):
        for layout, found in zip(LAYOUTS, of_rank, strict=True):
            assert found.keys() == alone.keys()
            assert all(math.isclose(found[name], alone[name], rel_tol=1e-5) for name in alone), layout


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_norms_by_layer_are_those_before_clipping(topology: Topology, clip: float) -> None:
    found, half = _norms(topology, clip=clip), _norms(topology, clip=clip, half=True)
    unclipped = _norms(topology, clip=0.0)
    assert all(math.isclose(found[name], unclipped[name], rel_tol=1e-6) for name in unclipped)
    assert half.keys() == unclipped.keys() and all(
        math.isclose(half[name], unclipped[name], rel_tol=0.1) for name in half
    )
