"""Whatever reads a model outside of pretraining's steps reads the whole of it, however it was trained.

Each reader is asked of a model that trains with dropout, and of another that was loaded from its checkpoint and never
dropped anything: bit for bit the same. That the comparison would see a leak is shown with one. A new reader of models
belongs into READERS.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from synpro_engine.data import Batch
from synpro_engine.dist import Topology
from synpro_engine.influence import (
    Direction,
    DotInfluence,
    FiniteDifferenceInfluence,
    JvpInfluence,
    ProbeConfig,
    TwoForwardInfluence,
    mean_gradient,
    next_step_direction,
    probe_direction,
    run_probe,
    sequence_logprobs,
)
from synpro_engine.model.build import build_model
from synpro_engine.model.dropout import BlockDropping, Dropout, Place, dropouts
from synpro_engine.model.dropout_config import DropoutConfig
from synpro_engine.model.model import Model
from synpro_engine.model.scoring import score_tokens
from synpro_engine.sampler import Sampler, SamplingConfig
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint
from synpro_engine.train.config import DistillConfig
from synpro_engine.train.engine import Engine, StepResult
from synpro_engine.train.ensemble import QuestionMixture, TokenMixture
from synpro_engine.train.evaluation import held_out_loss
from synpro_engine.train.losses import DistillationLoss, LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig
from synpro_engine.train.questions import ask
from tests.train.test_questions import questions
from tests.train.test_trainer import SHAPE, loader_of

ALL = DropoutConfig(embedding=0.5, attention=0.5, residual=0.5, depth=0.5, tokens=0.5, mask_token=5)
IDS = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(0))
BATCH = Batch(IDS[:, :-1], IDS[:, 1:])
SEQUENCES = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13]]
WALK = ProbeConfig(kind="walk", steps=2, global_batch=4, micro_batch=2)


def along(model: Model) -> Direction:
    generator = torch.Generator().manual_seed(1)
    return Direction({name: 0.01 * torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()})


def values(estimator: Any) -> list[tuple[float, float]]:
    return [(score.value, score.loss) for score in estimator.score(SEQUENCES)]


def tensors(direction: Direction) -> list[Tensor]:
    return list(direction.tensors.values())


def drawn(model: Model) -> list[tuple[Any, ...]]:
    groups = Sampler(model).generate(
        SEQUENCES, group_size=2, sampling=SamplingConfig(max_new_tokens=4), stop_ids=frozenset(), seeds=[0, 1, 2]
    )
    return [(one.token_ids, one.full_logprobs) for group in groups for one in group]


def mixed(model: Model, sums: Path) -> tuple[float, float]:
    mixture = TokenMixture(sums, [BATCH])
    return mixture.add(model, [BATCH], micro_batch=2, passed=lambda _: None)


def mixed_answers(model: Model) -> Any:
    mixture = QuestionMixture(questions(), seq_len=16, topology=model.topology)
    return mixture.add(model, micro_batch=2, passed=lambda _: None)


def taught_by(teacher: Model, seed: int = 3) -> StepResult:
    """A step of a student, which drops from everything, beside this teacher."""
    student = Engine(build_model(SHAPE, teacher.topology, seed=7), OptimizerConfig(lr=1e-2))
    loss = DistillationLoss(0.0, DistillConfig(teachers=("one",), share=0.9), [teacher])
    return student.step([BATCH], loss, denominator=64.0, dropouts=dropped(student, 5, seed))


def dropped(engine: Engine, step: int, seed: int = 3) -> list[Dropout]:
    layers, device = SHAPE.layers, engine.model.topology.device
    masks = dropouts(ALL, [4], first_row=0, seed=seed, step=step, layers=layers, device=device)
    assert masks is not None
    return list(masks)


READERS: dict[str, Callable[[Engine, Path], Any]] = {
    "held-out loss": lambda engine, _: held_out_loss(engine.model, [BATCH]),
    "scores of tokens": lambda engine, _: list(score_tokens(engine.model, BATCH.tokens_BS, BATCH.labels_BS))[:2],
    "log-probs of sequences": lambda engine, _: sequence_logprobs(engine.model, SEQUENCES, start_id=0),
    "log-probs of packed sequences": lambda engine, _: sequence_logprobs(
        engine.model, SEQUENCES, start_id=0, packed=True
    ),
    "hidden states": lambda engine, _: [engine.model.hidden(BATCH.tokens_BS).detach()],
    "reference gradient": lambda engine, _: tensors(mean_gradient(engine.model, [BATCH])),
    "next step": lambda engine, _: tensors(next_step_direction(engine, [BATCH], [[BATCH]])),
    "walk of a probe": lambda engine, theta: run_probe(theta, engine.model, loader_of(engine.model.topology), WALK),
    "direction of a probe": lambda engine, theta: tensors(
        probe_direction(theta, engine.model, loader_of(engine.model.topology), WALK)
    ),
    "dot": lambda engine, _: values(DotInfluence(engine.model, along(engine.model), start_id=0)),
    "clipped dot": lambda engine, _: values(DotInfluence(engine.model, along(engine.model), start_id=0, clip=1.0)),
    "two forwards": lambda engine, _: values(TwoForwardInfluence(engine.model, along(engine.model), start_id=0)),
    "finite differences": lambda engine, _: values(
        FiniteDifferenceInfluence(engine.model, along(engine.model), start_id=0)
    ),
    "forward mode": lambda engine, _: values(JvpInfluence(engine.model, along(engine.model), start_id=0)),
    "questions": lambda engine, _: ask(engine.model, questions(), seq_len=16, micro_batch=2),
    "mean of probabilities": lambda engine, theta: mixed(engine.model, theta.with_name("sums")),
    "answers by the mean of probabilities": lambda engine, _: mixed_answers(engine.model),
    "teacher": lambda engine, _: taught_by(engine.model),
    "sampler": lambda engine, _: drawn(engine.model),
    "a step of another loop": lambda engine, _: engine.step([BATCH], LanguageModelLoss(), denominator=64.0),
}
PAST_THE_BLOCKS = {"forward mode", "sampler"}
"""Readers with a decoder of their own over the model's tensors, which a leak in the blocks cannot reach."""


def trained(topology: Topology, theta: Path) -> Engine:
    """An engine after two steps with everything dropped from, which are kept in a checkpoint."""
    engine = Engine(build_model(SHAPE, topology), OptimizerConfig(lr=1e-2))
    for step in range(2):
        engine.step([BATCH], LanguageModelLoss(), denominator=64.0, dropouts=dropped(engine, step))
    save_checkpoint(theta, engine)
    return engine


def never_dropped(topology: Topology, theta: Path) -> Engine:
    model = build_model(SHAPE, topology, seed=9)
    engine = Engine(model, OptimizerConfig(lr=1e-2))
    load_checkpoint(theta, model, engine)
    return engine


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(one[0], Tensor):
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_reads_the_whole_model(topology: Topology, tmp_path: Path, reader: str) -> None:
    theta = tmp_path / "theta"
    found = READERS[reader](trained(topology, theta), theta)
    assert equal(found, READERS[reader](never_dropped(topology, theta), theta))


# Of a teacher's reading the student's part would change too: its own test is below.
@pytest.mark.parametrize("reader", sorted(READERS.keys() - PAST_THE_BLOCKS - {"teacher"}))
def test_a_leak_would_be_seen(topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    theta = tmp_path / "theta"
    found = READERS[reader](trained(topology, theta), theta)
    one_row = Dropout.of(ALL, torch.zeros(1, dtype=torch.int64), seed=3, step=0, layers=SHAPE.layers)

    def leaking(self: BlockDropping, x_SBH: Tensor, place: Place) -> Tensor:
        return one_row.entries(x_SBH, self.layer, place, 0.5, torch.arange(len(x_SBH)))

    engine = never_dropped(topology, theta)
    monkeypatch.setattr(BlockDropping, "branch", leaking)
    assert not equal(found, READERS[reader](engine, theta))


def test_a_teacher_drops_nothing_while_its_student_does(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, read = build_model(SHAPE, topology, seed=11), list[Tensor]()
    whole, hidden = teacher.hidden(BATCH.tokens_BS).detach(), Model.hidden

    def noted(self: Model, *given: Any) -> Tensor:
        read.append(hidden(self, *given))
        assert self is teacher
        return read[-1]

    monkeypatch.setattr(Model, "hidden", noted)
    result = taught_by(teacher)
    monkeypatch.undo()
    assert len(read) == 1 and torch.equal(read[0], whole)
    # Its student dropped: other masks are another loss.
    assert taught_by(teacher, seed=4).loss != result.loss
