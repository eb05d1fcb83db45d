"""Weights that are gathered behind the next step: the same bits, and nobody reads one that has not arrived."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup as BucketGroup
from pydantic import ValidationError
from torch import Tensor

from synpro_engine.backend.spans import FORWARD, PARAM_GATHER, SpanClock, listening
from synpro_engine.data import Batch
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.train import engine as engine_module
from synpro_engine.train import weight_gather
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint
from synpro_engine.train.config import EmaConfig, TrainConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.evaluation import held_out_loss
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import MuonConfig, OptimizerConfig
from synpro_engine.train.questions import ask
from tests.train import test_trainer as toy
from tests.train.test_questions import questions

SHAPE: Any = {"layers": 4, "d_model": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab_size": 64, "seq_len": 16}
MODELS = {
    "olmo2": ModelConfig(family="olmo2", **SHAPE),
    "tied llama": ModelConfig(family="llama", tie_embeddings=True, **SHAPE),
}
ADAMW = OptimizerConfig(lr=1e-2)
MUON = ADAMW.model_copy(update={"name": "muon", "muon": MuonConfig(lr=2e-3)})
Numbers = list[float]
PAUSE_S = 0.5


class _Late:
    """A gather that runs when it is waited for and no sooner, as on a network that is slow at the worst moment."""

    pause_s = 0.0

    def __init__(self, group: Any, gather: Callable[[], None]) -> None:
        self._group, self._gather = group, gather
        rank = group.intra_distributed_optimizer_instance_rank
        size = group.intra_distributed_optimizer_instance_size
        for bucket in group.buckets:  # what other ranks own would not look wrong: it is that of the step before
            for owner, share in enumerate(bucket.param_data.chunk(size)):
                if owner != rank:
                    share.fill_(torch.nan)

    def wait(self) -> None:
        self._group.param_gather_handle = None
        time.sleep(self.pause_s)
        self._gather()


_gather = BucketGroup.start_param_sync


def _gather_late(group: Any, force_sync: bool = False) -> None:
    if force_sync:
        _gather(group, force_sync=True)
    else:
        group.param_gather_handle = _Late(group, partial(_gather, group, force_sync=True))


def gathering(*, late: bool) -> None:
    """In this process from here on."""
    # So small a model would have one bucket, of which nothing is left to gather behind the first layer.
    engine_module.DistributedDataParallelConfig = partial(DistributedDataParallelConfig, bucket_size=2000)
    of_groups: Any = BucketGroup
    of_groups.start_param_sync = _gather_late if late else _gather


def batch_of(step: int, rank: int, size: int) -> list[Batch]:
    ids = torch.randint(64, (8, 17), generator=torch.Generator().manual_seed(step)).chunk(size)[rank]
    return [Batch(part[:, :-1], part[:, 1:]) for part in ids.split(2)]


@dataclass(frozen=True)
class Case:
    """half: in bf16, where what is updated is a copy of the weights."""

    layout: dict[str, Any]
    model: str = "olmo2"
    optimizer: OptimizerConfig = ADAMW
    half: bool = False


def numbers_of(case: Case, port: int, folder: Path, *, behind: bool, late: bool) -> Numbers:
    """Of steps, of all that reads weights between two of them, and of the weights at the end."""
    gathering(late=late)
    with job(ParallelConfig.model_validate(case.layout), port) as topology:
        built = build_model(MODELS[case.model], topology, dtype=torch.bfloat16 if case.half else torch.float32)
        engine = Engine(
            built,
            case.optimizer,
            overlap_gradients=True,
            overlap_weights=behind,
            averages={"ema": EmaConfig(decay=0.5)},
        )
        rank, size = topology.dp.rank, topology.dp.size
        found: Numbers = []

        def steps(first: int, stop: int) -> None:
            for step in range(first, stop):
                result = engine.step(batch_of(step, rank, size), LanguageModelLoss(1e-4), denominator=128.0)
                found.extend([result.loss, result.grad_norm, float(result.skipped)])

        steps(0, 3)
        found.append(held_out_loss(built, batch_of(50, rank, size), micro_batch=2))
        steps(3, 4)
        with engine.holding("ema"):
            found.append(held_out_loss(built, batch_of(50, rank, size), micro_batch=2))
        steps(4, 5)
        answers = ask(built, questions(), seq_len=16, micro_batch=2)  # of which replicas have uneven shares
        found.extend([answers.accuracy, answers.bits_per_byte])
        steps(5, 6)
        found.extend(sums(built))
        steps(6, 7)
        save_checkpoint(folder / f"{behind}", engine)
        steps(7, 8)
        again = build_model(MODELS[case.model], topology, dtype=built.dtype, seed=9)
        load_checkpoint(folder / f"{behind}", again)
        found.extend(sums(again))
        load_checkpoint(folder / f"{behind}", built, engine)  # over weights that are under way
        steps(8, 9)
        found.extend(sums(built))
        if topology.is_last_stage:
            found.append(float(built.output_weight().detach().double().sum()))
        return found


def sums(model: Model) -> Numbers:
    def first_ones(parameter: Tensor) -> float:
        flat = parameter.detach().double().flatten()
        return float((flat * torch.arange(1, len(flat) + 1)).sum())

    return [first_ones(parameter) for parameter in model.parameters()]


CASES = [
    (2, Case({}, half=True)),
    (2, Case({}, "tied llama", MUON)),
    (2, Case({"cp": 2})),
    (4, Case({"tp": 2, "sequence_parallel": True})),
    pytest.param(4, Case({"pp": 2, "vpp": 2}, "tied llama"), marks=pytest.mark.slow),
]


def three_ways(case: Case, ports: list[int], folder: Path) -> list[Numbers]:
    """Gathered at once, behind the next step, and so late that what has not arrived is NaN till then."""
    ways = ((False, False), (True, False), (True, True))
    return [
        numbers_of(case, port, folder, behind=behind, late=late)
        for port, (behind, late) in zip(ports, ways, strict=True)
    ]


@pytest.mark.parametrize(("ranks", "case"), CASES, ids=["bf16", "tied muon", "cp2", "tp2 sp", "tied pp2 vp2"])
def test_steps_and_all_that_reads_between_them_have_the_same_bits(ranks: int, case: Case, tmp_path: Path) -> None:
    for at_once, behind, late in run_ranks(three_ways, ranks, case=case, ports=free_ports(3), folder=tmp_path):
        assert torch.tensor(at_once).isfinite().all()
        assert behind == at_once
        assert late == at_once


def unheeding(ports: list[int], folder: Path) -> list[bool]:
    """Whether what a rank reads is finite where one of the two ways of waiting is left out."""
    found = []
    for owner, name, left_out, port in (
        (Model, "arrive", lambda model: None, ports[0]),
        (weight_gather, "_waiting", lambda groups: lambda *_: None, ports[1]),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, left_out)
            numbers = numbers_of(Case({}), port, folder, behind=True, late=True)
        found.append(bool(torch.tensor(numbers).isfinite().all()))
    return found


def test_a_reader_that_would_not_wait_is_seen_here(tmp_path: Path) -> None:
    assert run_ranks(unheeding, 2, ports=free_ports(2), folder=tmp_path) == [[False, False]] * 2


def one_behind_another(ports: list[int]) -> list[tuple[Numbers, list[int]]]:
    """Weights after a first engine's step, read where a second one was built; hooks of modules with each of them."""
    found = []
    for late, port in zip((False, True), ports, strict=True):
        gathering(late=late)
        with job(ParallelConfig(), port) as topology:
            built, hooks = build_model(MODELS["olmo2"], topology), list[int]()

            def engine(built: Model = built, hooks: list[int] = hooks, late: bool = late) -> Engine:
                made = Engine(built, ADAMW, overlap_gradients=True, overlap_weights=late)
                hooks.append(sum(len(m._forward_pre_hooks) for chunk in built.chunks for m in chunk.modules()))
                return made

            batches = batch_of(0, topology.dp.rank, topology.dp.size)
            engine().step(batches, LanguageModelLoss(), denominator=128.0)
            engine()
            found.append((sums(built), hooks))
    return found


def test_a_second_engine_takes_over_weights_that_are_under_way_and_none_of_the_first_one_s_hooks() -> None:
    for (at_once, _), (late, hooks) in run_ranks(one_behind_another, 2, ports=free_ports(2)):
        assert late == at_once and torch.tensor(late).isfinite().all()
        assert hooks[0] == hooks[1] > 0


def seconds_of_a_step() -> dict[str, float]:
    of_groups: Any = BucketGroup
    of_groups.start_param_sync, _Late.pause_s = _gather_late, PAUSE_S
    with launched(ParallelConfig()) as topology:
        built = build_model(MODELS["olmo2"], topology)
        engine = Engine(built, ADAMW, overlap_gradients=True, overlap_weights=True)

        def step() -> None:
            batches = batch_of(0, topology.dp.rank, topology.dp.size)
            engine.step(batches, LanguageModelLoss(), denominator=128.0)

        step()
        clock = SpanClock(topology.device)
        with listening(clock):
            step()
        return clock.seconds()


def test_waiting_for_weights_is_no_rank_s_own_work() -> None:
    for seconds in run_ranks(seconds_of_a_step, 2):
        assert seconds[PARAM_GATHER] > PAUSE_S > seconds[FORWARD]


def test_one_replica_is_told_that_it_gains_nothing(
    topology: Topology, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {"overlap_gradients": True, "overlap_weights": True, "max_steps": 1, "plateau": None}
    toy.train(topology, tmp_path, toy.CONFIG.model_copy(update=both))
    assert "`pretrain.overlap_weights`: here is one replica" in capsys.readouterr().err


def test_it_goes_with_overlapped_gradients_alone() -> None:
    with pytest.raises(ValidationError, match="overlap_weights: goes with overlap_gradients"):
        TrainConfig(max_steps=1, overlap_weights=True)
