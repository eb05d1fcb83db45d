"""The pretraining loop: the same bits whether or not it was interrupted, and every record once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.data import Batch, TokenCorpus, TokenLoader, eval_windows
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.train import evaluation
from synpro_engine.train.checkpoint import load_checkpoint
from synpro_engine.train.checkpoint_files import whole_tensors
from synpro_engine.train.config import PlateauConfig, TrainConfig
from synpro_engine.train.metrics import METRICS, read_metrics
from synpro_engine.train.optimizer_config import OptimizerConfig, ScheduleConfig
from synpro_engine.train.run_state import PretrainResult
from synpro_engine.train.trainer import pretrain

# The large epsilon keeps Adam from blowing up rounding noise of gradients near zero where layouts are compared.
SHAPE = ModelConfig(layers=2, d_model=32, heads=4, kv_heads=2, ffn=48, vocab_size=64, seq_len=16)
CONFIG = TrainConfig(
    max_steps=6, global_batch=4, micro_batch=2, eval_every=2, checkpoint_every=2, keep_checkpoints=10,
    tensorboard=False, optimizer=OptimizerConfig(lr=1e-2, eps=1e-3), schedule=ScheduleConfig(warmup_steps=3),
    plateau=PlateauConfig(window=1),
)  # fmt: skip


class Killed(Exception):
    """Stands for the end of the process between two steps."""


def corpus(seed: int, documents: int = 30) -> TokenCorpus:
    """Documents whose next token mostly follows from the last one, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random((documents, 20)) < 0.9, 1, rng.integers(1, 63, (documents, 20)))
    tokens = (np.cumsum(steps, axis=1) + rng.integers(63, size=(documents, 1))) % 63 + 1
    tokens[:, -1] = 0
    return TokenCorpus(
        tokens=tokens.reshape(-1).astype(np.int32), offsets=np.arange(0, documents * 20 + 1, 20), eos_id=0,
        text_bytes=1, fingerprint="test", read_ids=lambda: [str(n) for n in range(documents)],
    )  # fmt: skip


def loader_of(topology: Topology, seed: int = 5, batch: int = 4) -> TokenLoader:
    where = {"dp_rank": topology.dp.rank, "dp_size": topology.dp.size}
    return TokenLoader({"organic": corpus(1)}, {"organic": 1.0}, 16, batch, seed, **where)


def held_out(topology: Topology) -> dict[str, list[Batch]]:
    where = {"dp_rank": topology.dp.rank, "dp_size": topology.dp.size}
    return {
        name: list(eval_windows(corpus(seed, 9), 16, batch_size=2, **where))
        for name, seed in (("reference", 2), ("validation", 3))
    }


def train(
    topology: Topology, directory: Path, config: TrainConfig = CONFIG, die_before: int | None = None, **settings: Any
) -> PretrainResult:
    loader = loader_of(topology, batch=config.global_batch)
    if die_before is not None:
        deal, given = loader.next_batch, iter(range(die_before))

        def next_batch() -> Batch:
            if next(given, None) is None:
                raise Killed
            return deal()

        loader.next_batch = next_batch
    model = build_model(SHAPE, topology)
    return pretrain(model, config, loader, directory, held_out=held_out(topology), **settings)


def records(directory: Path) -> list[dict[str, Any]]:
    """Everything recorded, without clocks."""
    return [
        {key: value for key, value in record.items() if key not in ("time", "tokens_per_s")}
        for record in read_metrics(directory / METRICS)
    ]


def same(one: PretrainResult, other: PretrainResult) -> bool:
    ours, theirs = (whole_tensors(result.checkpoint / "state") for result in (one, other))
    numbers = (one.step, one.tokens, one.losses, one.reason) == (other.step, other.tokens, other.losses, other.reason)
    return numbers and set(ours) == set(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


def resume(directory: str) -> None:
    with launched(ParallelConfig()) as topology:
        train(topology, Path(directory))


def test_a_killed_run_goes_on_in_a_new_process_with_the_same_bits(topology: Topology, tmp_path: Path) -> None:
    whole = train(topology, tmp_path / "whole")
    with pytest.raises(Killed):
        train(topology, tmp_path / "killed", die_before=5)
    assert records(tmp_path / "killed")[-1]["step"] == 5  # beyond the checkpoint of step 4
    run_ranks(resume, 1, directory=str(tmp_path / "killed"))
    again = train(topology, tmp_path / "killed")  # finished: only told again
    assert same(whole, again)
    assert records(tmp_path / "whole") == records(tmp_path / "killed")


def test_a_run_that_dies_before_its_first_checkpoint_begins_anew(topology: Topology, tmp_path: Path) -> None:
    whole = train(topology, tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(Killed):
            train(topology, tmp_path / "killed", die_before=1)
    assert same(whole, train(topology, tmp_path / "killed"))
    assert records(tmp_path / "whole") == records(tmp_path / "killed")


def test_records_say_what_was_measured(topology: Topology, tmp_path: Path) -> None:
    result = train(topology, tmp_path)
    steps = [record for record in read_metrics(tmp_path / METRICS) if record["kind"] == "train"]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert [record["tokens"] for record in steps] == [64 * n for n in range(1, 7)]
    assert [record["lr"] for record in steps[:3]] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
    assert all(record["z_loss"] > 0 and record["tokens_per_s"] > 0 and "mfu" not in record for record in steps)
    evaluations = [record for record in records(tmp_path) if record["kind"] == "eval"]
    assert [record["step"] for record in evaluations] == [0, 2, 4, 6]
    assert evaluations[-1]["reference_loss"] == result.losses["reference"] < evaluations[0]["reference_loss"]
    assert set(result.losses) == {"reference", "validation"}


def test_a_plateau_ends_the_run_and_says_why(topology: Topology, tmp_path: Path) -> None:
    strict = PlateauConfig(rule="windows", window=1, min_improvement=0.9, patience=2)
    config = CONFIG.model_copy(update={"max_steps": 50, "plateau": strict})
    result = train(topology, tmp_path, config)
    assert result.plateau and result.step == 6 and "plateau at step 6" in result.reason
    decisions = [record for record in records(tmp_path) if record["kind"] == "plateau"]
    assert [record["stop"] for record in decisions] == [False, False, True]
    assert decisions[-1]["reason"] == result.reason
    assert same(result, train(topology, tmp_path, config))  # looked at again: still ended


def test_a_budget_ends_the_run_and_is_no_plateau(topology: Topology, tmp_path: Path) -> None:
    limited = PlateauConfig(window=1, min_improvement=0.0, max_steps=4)
    config = CONFIG.model_copy(update={"max_steps": 50, "plateau": limited})
    result = train(topology, tmp_path, config)
    assert not result.plateau and result.step == 4 and "budget: 4 steps" in result.reason
    assert [record["ended_by"] for record in records(tmp_path) if record["kind"] == "plateau"] == [None, "budget"]
    again = train(topology, tmp_path, config)  # looked at again: still ended
    assert same(result, again) and not again.plateau


@pytest.mark.parametrize("limit", [{"max_steps": 3}, {"max_tokens": 3 * 64}])
def test_a_budget_ends_the_run_between_evaluations_too(
    topology: Topology, tmp_path: Path, limit: dict[str, int]
) -> None:
    config = CONFIG.model_copy(update={"max_steps": 50, "plateau": PlateauConfig(window=1, **limit)})
    result = train(topology, tmp_path, config)
    assert result.step == 3 and not result.plateau and result.reason.startswith("budget: ")
    evaluated = [record["step"] for record in records(tmp_path) if record["kind"] == "eval"]
    assert evaluated == [0, 2, 3] and same(result, train(topology, tmp_path, config))


def test_the_detector_does_not_mix_losses_of_two_distances(
    topology: Topology, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = PlateauConfig(rule="windows", window=2, min_improvement=0.9)
    config = CONFIG.model_copy(update={"max_steps": 7, "plateau": strict})
    with pytest.raises(Killed):
        train(topology, tmp_path, config, die_before=6)
    wider = config.model_copy(update={"max_steps": 20, "eval_every": 1, "checkpoint_every": 1})
    capsys.readouterr()
    with pytest.raises(Killed):
        train(topology, tmp_path, wider, die_before=1)
    told = "evaluations are 1 steps apart from here on, 2 before; the plateau detector begins anew"
    assert capsys.readouterr().err.count(told) == 1
    result = train(topology, tmp_path, wider)
    assert told not in capsys.readouterr().err
    # The three of before and one more would have been the four that are asked for.
    assert result.plateau and result.step == 10


def test_arms_go_on_from_a_checkpoint(topology: Topology, tmp_path: Path) -> None:
    first = train(topology, tmp_path / "first")
    arm = CONFIG.model_copy(update={"max_steps": 2, "plateau": None, "schedule": ScheduleConfig()})
    kept = train(topology, tmp_path / "kept", arm, start=first.checkpoint)
    assert kept.step == 8 and kept.tokens == 128
    assert records(tmp_path / "kept")[0]["reference_loss"] == first.losses["reference"]
    longer = train(topology, tmp_path / "longer", CONFIG.model_copy(update={"max_steps": 8, "plateau": None}))
    ours, theirs = (whole_tensors(result.checkpoint / "state") for result in (kept, longer))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    steps = [record["step"] for record in records(tmp_path / "kept") if record["kind"] == "train"]
    assert steps == [7, 8]


def test_old_checkpoints_are_removed(topology: Topology, tmp_path: Path) -> None:
    train(topology, tmp_path, CONFIG.model_copy(update={"keep_checkpoints": 2}))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]


def test_a_directory_of_other_settings_is_refused(topology: Topology, tmp_path: Path) -> None:
    train(topology, tmp_path)
    with pytest.raises(UserError, match=r"settings: `z_loss` is 0\.0001 there"):
        train(topology, tmp_path, CONFIG.model_copy(update={"z_loss": 0.5}))
    with pytest.raises(UserError, match=r"^setting `plateau`: needs .*`reference`"):
        pretrain(build_model(SHAPE, topology), CONFIG, loader_of(topology), tmp_path / "other")


def test_a_finished_run_can_be_made_longer(topology: Topology, tmp_path: Path) -> None:
    train(topology, tmp_path / "a")
    longer = CONFIG.model_copy(update={"max_steps": 8})
    assert same(train(topology, tmp_path / "a", longer), train(topology, tmp_path / "b", longer))


def test_weights_go_on_without_the_run(topology: Topology, tmp_path: Path) -> None:
    result = train(topology, tmp_path)
    model = build_model(SHAPE, topology, seed=8)
    assert load_checkpoint(result.checkpoint, model)["step"] == 6
    saved = whole_tensors(result.checkpoint / "state")["output_layer.weight"]
    assert torch.equal(model.output_weight(), saved)


LAYOUTS = {"DP2": ParallelConfig(), "TP2": ParallelConfig(tp=2), "CP2": ParallelConfig(cp=2)}


def two_ranks(directory: str, ports: list[int]) -> dict[str, PretrainResult]:
    found = {}
    for port, (name, parallel) in zip(ports, LAYOUTS.items(), strict=True):
        with job(parallel, port) as topology:
            found[name] = train(topology, Path(directory) / name)
    return found


def test_two_ranks_pretrain_like_one(topology: Topology, tmp_path: Path) -> None:
    expected = train(topology, tmp_path / "one")
    one, other = run_ranks(two_ranks, 2, directory=str(tmp_path), ports=free_ports(len(LAYOUTS)))
    assert one == other
    for name in LAYOUTS:
        assert one[name].losses == pytest.approx(expected.losses, rel=1e-5)
        mine, theirs = records(tmp_path / "one"), records(tmp_path / name)
        for ours, found in zip(mine, theirs, strict=True):
            assert (found["kind"], found["step"]) == (ours["kind"], ours["step"])
            if ours["kind"] == "train":
                assert (found["loss"], found["grad_norm"]) == pytest.approx((ours["loss"], ours["grad_norm"]), rel=3e-5)


def measuring_otherwise(directory: str, port: int) -> PretrainResult:
    """Rank 1 measures other held-out losses, as it would where the last bits of a sum differ."""
    with job(ParallelConfig(), port) as topology:
        measure = evaluation.held_out_loss
        evaluation.held_out_loss = lambda *args, **kwargs: measure(*args, **kwargs) * (1.0 + topology.rank)
        return train(topology, Path(directory))


def test_every_rank_judges_the_held_out_losses_that_rank_0_measured(tmp_path: Path) -> None:
    one, other = run_ranks(measuring_otherwise, 2, directory=str(tmp_path), port=free_ports(1)[0])
    assert one == other and one.losses


def test_micro_batches_cover_the_batch_and_a_pipeline_gets_equal_ones() -> None:
    batch = Batch(*torch.arange(60).view(3, 5, 4))
    assert [part.tokens_BS.size(0) for part in batch.split(2, equal=False)] == [2, 2, 1]
    parts = [vars(part) for part in batch.split(2, equal=False)]
    for name, whole in vars(batch).items():
        together = torch.cat([part[name] for part in parts]) if torch.is_tensor(whole) else parts[-1][name]
        assert torch.equal(together, whole) if torch.is_tensor(whole) else together == whole, name
    assert len(batch.split(100, equal=True)) == 1
    with pytest.raises(UserError, match=r"^setting `micro_batch`: "):
        batch.split(2, equal=True)
