"""Dropout in pretraining: the same run whatever interrupts or divides it."""

from pathlib import Path

import pytest

from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.dist import ParallelConfig, Topology
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.dropout_config import DropoutConfig
from synpro_engine.train.checkpoint import load_checkpoint
from synpro_engine.train.evaluation import held_out_loss
from tests.train.test_trainer import CONFIG, SHAPE, Killed, held_out, records, same, train

ALL = DropoutConfig(embedding=0.1, attention=0.1, residual=0.2, depth=0.3, tokens=0.1, mask_token=5)
DROPPED = CONFIG.model_copy(update={"dropout": ALL})


def test_a_killed_run_goes_on_with_the_same_masks(topology: Topology, tmp_path: Path) -> None:
    whole = train(topology, tmp_path / "whole", DROPPED)
    with pytest.raises(Killed):
        train(topology, tmp_path / "killed", DROPPED, die_before=5)
    assert same(whole, train(topology, tmp_path / "killed", DROPPED))
    assert records(tmp_path / "whole") == records(tmp_path / "killed")


def test_the_size_of_micro_batches_does_not_change_what_is_dropped(topology: Topology, tmp_path: Path) -> None:
    found = []
    for size in (1, 2, 3, 4):
        train(topology, tmp_path / str(size), DROPPED.model_copy(update={"micro_batch": size}))
        found.append([record["loss"] for record in records(tmp_path / str(size)) if record["kind"] == "train"])
    for losses in found[1:]:
        assert losses == pytest.approx(found[0], rel=1e-5)


def test_it_is_off_by_default_and_on_where_it_is_asked_for(topology: Topology, tmp_path: Path) -> None:
    losses = {}
    for name in ("nothing", "embedding", "attention", "residual", "depth", "tokens"):
        rates = {} if name == "nothing" else {name: 0.2, "mask_token": 5}
        config = CONFIG.model_copy(update={"dropout": DropoutConfig.model_validate(rates)})
        train(topology, tmp_path / name, config)
        losses[name] = next(record["loss"] for record in records(tmp_path / name) if record["kind"] == "train")
    train(topology, tmp_path / "plain")
    assert records(tmp_path / "plain") == records(tmp_path / "nothing")
    assert len(set(losses.values())) == len(losses)


LAYOUTS = {
    "DP2": ParallelConfig(), "TP2": ParallelConfig(tp=2), "TP2 SP": ParallelConfig(tp=2, sequence_parallel=True),
    "PP2": ParallelConfig(pp=2), "CP2": ParallelConfig(cp=2),
}  # fmt: skip


def two_ranks(directory: str, ports: list[int]) -> None:
    for port, (name, parallel) in zip(ports, LAYOUTS.items(), strict=True):
        with job(parallel, port) as topology:
            train(topology, Path(directory) / name, DROPPED)


def test_two_ranks_drop_what_one_drops(topology: Topology, tmp_path: Path) -> None:
    train(topology, tmp_path / "one", DROPPED)
    run_ranks(two_ranks, 2, directory=str(tmp_path), ports=free_ports(len(LAYOUTS)))
    for name in LAYOUTS:
        for ours, found in zip(records(tmp_path / "one"), records(tmp_path / name), strict=True):
            if ours["kind"] == "train":
                assert (found["loss"], found["grad_norm"]) == pytest.approx((ours["loss"], ours["grad_norm"]), rel=3e-5)


def test_evaluations_of_a_run_are_of_the_whole_model(topology: Topology, tmp_path: Path) -> None:
    """Its record against losses of the saved weights in a model that never trained."""
    result = train(topology, tmp_path, DROPPED)
    plain = build_model(SHAPE, topology, seed=9)
    load_checkpoint(result.checkpoint, plain)
    expected = {name: held_out_loss(plain, batches, micro_batch=2) for name, batches in held_out(topology).items()}
    assert result.losses == expected
    last = [record for record in records(tmp_path) if record["kind"] == "eval"][-1]
    assert {name: last[f"{name}_loss"] for name in expected} == expected


def test_a_mask_beyond_the_vocabulary_is_refused(topology: Topology, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"dropout": DropoutConfig(tokens=0.1, mask_token=64)})
    with pytest.raises(UserError, match=r"setting `dropout\.mask_token`: 64 is none of the model's 64 tokens"):
        train(topology, tmp_path, config)
    overrides = ["pretrain.dropout.tokens=0.1", "pretrain.dropout.mask_token=1000000"]
    with pytest.raises(UserError, match=r"pretrain\.dropout\.mask_token: 1000000 is not below model\.vocab_size"):
        load_recipe("smoke", overrides)
