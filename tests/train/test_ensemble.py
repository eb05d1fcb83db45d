"""Several models together: losses and answers by mean probabilities in fp64, in every layout, one number a token."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synpro_engine.config import UserError
from synpro_engine.data import Batch, eval_windows
from synpro_engine.dist import Topology
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.influence.first_order import plain_logits
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.train.ensemble import QuestionMixture, TokenMixture
from synpro_engine.train.evaluation import held_out_loss
from synpro_engine.train.questions import Answers, ask
from tests.train.test_layouts import LAYOUTS, SHAPE, batch_of
from tests.train.test_questions import questions
from tests.train.test_trainer import corpus

# Large initial weights, so that members are sure of other tokens each.
CONFIG = ModelConfig(family="olmo2", init_std=0.5, **SHAPE)
MEMBERS = 4


def member(topology: Topology, seed: int) -> Model:
    return build_model(CONFIG, topology, seed=seed)


def losses(topology: Topology, folder: Path) -> list[tuple[float, float]]:
    """Each member's loss, and that of all up to it, on a text of two batches of eight rows."""
    dp = topology.dp

    batches = [batch for step in (1, 2) for batch in batch_of(step, dp.rank, dp.size)]
    mixture = TokenMixture(folder / f"{topology.rank}.f32", batches)
    return [
        mixture.add(member(topology, seed), batches, micro_batch=2, passed=lambda _: None) for seed in range(MEMBERS)
    ]


def oracle(topology: Topology) -> list[tuple[float, float]]:
    """The same in fp64 from every logit of every member."""
    batches = [batch for step in (1, 2) for batch in batch_of(step)]
    labels = torch.cat([batch.labels_BS for batch in batches])
    counted = labels != -100

    def probabilities(model: Model) -> Tensor:
        tokens = torch.cat([batch.tokens_BS for batch in batches])
        return plain_logits(model, tokens, lambda weight: weight.detach().double()).softmax(-1)[counted]

    found, total = [], torch.zeros(int(counted.sum()), CONFIG.vocab_size, dtype=torch.float64)
    for number in range(MEMBERS):
        own = probabilities(member(topology, number))
        total += own
        both = (own, total / (number + 1))
        found.append(tuple(float(-p.gather(1, labels[counted][:, None]).log().mean()) for p in both))
    return found


def answers(topology: Topology) -> list[tuple[Answers, Answers]]:
    """Each member's answers, and those of all up to it."""
    mixture = QuestionMixture(questions(), seq_len=16, topology=topology)
    found = [mixture.add(member(topology, seed), micro_batch=2, passed=lambda _: None) for seed in range(MEMBERS)]
    assert found[0][0] == found[0][1]  # alone
    return found


def answered_naively(topology: Topology) -> Answers:
    """By every logit of every member in fp64: the mean distribution at each token, answer by answer."""
    models = [member(topology, seed) for seed in range(MEMBERS)]
    right = per_byte = gold_bytes = 0
    gold_nats = 0.0
    for question in questions().questions:
        nats = []
        for at, choice in enumerate(question.choices):
            row = torch.tensor([0, *question.before(at), *choice][-17:])
            total = torch.zeros(len(row) - 1, CONFIG.vocab_size, dtype=torch.float64)
            for model in models:
                total += plain_logits(model, row[None, :-1], lambda weight: weight.detach().double()).softmax(-1)[0]
            mean = (total / MEMBERS)[-len(choice) :]
            nats.append(-float(mean.gather(1, torch.tensor(choice)[:, None]).log().sum()))
        scaled = [one / size for one, size in zip(nats, question.utf8_bytes, strict=True)]
        right += nats.index(min(nats)) == question.gold
        per_byte += scaled.index(min(scaled)) == question.gold
        gold_nats += nats[question.gold]
        gold_bytes += question.utf8_bytes[question.gold]
    asked = len(questions().questions)
    return Answers(
        accuracy=right / asked, accuracy_per_byte=per_byte / asked, bits_per_byte=gold_nats / math.log(2) / gold_bytes
    )


def test_answers_together_are_those_of_the_mean_distribution_at_each_token(topology: Topology) -> None:
    found = answers(topology)
    assert asdict(found[-1][1]) == pytest.approx(asdict(answered_naively(topology)), rel=1e-5)
    # The members do not agree, so that something is mixed.
    assert len({own.bits_per_byte for own, _ in found}) == MEMBERS
    assert found[-1][1].bits_per_byte < min(own.bits_per_byte for own, _ in found)


def test_a_member_s_own_answers_are_those_that_it_gives_alone(topology: Topology) -> None:
    for seed, (own, _) in enumerate(answers(topology)):
        assert own == ask(member(topology, seed), questions(), seq_len=16, micro_batch=2)


def test_an_answer_that_leaves_no_room_for_its_prompt_is_refused(topology: Topology) -> None:
    with pytest.raises(UserError, match="an answer of 4 tokens does not fit windows of 4"):
        QuestionMixture(questions(), seq_len=4, topology=topology)


def test_the_loss_together_is_that_of_mean_probabilities_in_fp64(topology: Topology, tmp_path: Path) -> None:
    found, expected = losses(topology, tmp_path), oracle(topology)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert found[0][0] == found[0][1]  # alone
    # By convexity below the mean of the members', and here below each of them.
    assert found[-1][1] < min(own for own, _ in found) - 0.1


def test_a_member_s_own_loss_is_its_held_out_loss(topology: Topology, tmp_path: Path) -> None:
    batches = [batch for step in (1, 2) for batch in batch_of(step)]
    for seed, (own, _) in enumerate(losses(topology, tmp_path)):
        assert own == pytest.approx(held_out_loss(member(topology, seed), batches, micro_batch=2), rel=1e-7)


def test_a_member_that_reads_documents_apart_is_measured_so(topology: Topology, tmp_path: Path) -> None:
    model, found = member(topology, 0), []
    for apart in (False, True):
        batches = list(eval_windows(corpus(2, 9), 16, batch_size=2, separate_documents=apart))
        mixture = TokenMixture(tmp_path / "sums", batches)
        found.append(mixture.add(model, batches, micro_batch=2, passed=lambda _: None)[0])
        assert found[-1] == pytest.approx(held_out_loss(model, batches, micro_batch=2), rel=1e-7)
    assert abs(found[0] - found[1]) > 1e-3


def test_copies_of_one_model_are_that_model(topology: Topology, tmp_path: Path) -> None:
    mixture = TokenMixture(tmp_path / "sums", batch_of(1))
    found = [mixture.add(member(topology, 3), batch_of(1), micro_batch=8, passed=lambda _: None) for _ in range(5)]
    assert all(together == pytest.approx(found[0][0], rel=1e-6) for _, together in found)


def test_one_number_a_label_is_kept_whatever_the_number_of_members(topology: Topology, tmp_path: Path) -> None:
    rows: list[int] = []
    mixture = TokenMixture(tmp_path / "sums", batch_of(1))
    for seed in range(3):
        mixture.add(member(topology, seed), batch_of(1), micro_batch=8, passed=rows.append)
    labels = sum(int((batch.labels_BS != -100).sum()) for batch in batch_of(1))
    assert (tmp_path / "sums").stat().st_size == 4 * labels
    assert sum(rows) == 3 * mixture.rows == 3 * 8
    sums = np.fromfile(tmp_path / "sums", np.float32)
    assert np.isfinite(sums).all() and sums.max() <= math.log(3)


def test_a_text_without_labels_is_refused(topology: Topology, tmp_path: Path) -> None:
    [first, *_] = batch_of(1)
    empty = Batch(first.tokens_BS, torch.full_like(first.labels_BS, -100))
    mixture = TokenMixture(tmp_path / "sums", [empty])
    with pytest.raises(UserError, match="not a single token to predict"):
        mixture.add(member(topology, 0), [empty], micro_batch=2, passed=lambda _: None)


def in_layouts(names: list[str], folder: Path, ports: list[int]) -> dict[str, Any]:
    found = {}
    for name, port in zip(names, ports, strict=True):
        with job(LAYOUTS[name], port) as topology:
            found[name] = losses(topology, folder), answers(topology)
    return found


@pytest.mark.parametrize(
    ("ranks", "names"),
    [
        (2, ["DP2", "TP2 SP", "PP2", "CP2"]),
        (4, ["DP2 TP2"]),
        pytest.param(4, ["DP2 PP2", "CP2 TP2 SP"], marks=pytest.mark.slow),
    ],
)
def test_layouts_measure_like_one_process(topology: Topology, tmp_path: Path, ranks: int, names: list[str]) -> None:
    alone, answered = losses(topology, tmp_path), answers(topology)
    results = run_ranks(in_layouts, ranks, names=names, folder=tmp_path, ports=free_ports(len(names)))
    for found in results:
        for name in names:
            for ours, theirs in zip(found[name][0], alone, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-5), name
            for ours, theirs in zip(found[name][1], answered, strict=True):
                for mine, one in zip(ours, theirs, strict=True):
                    assert asdict(mine) == pytest.approx(asdict(one), rel=1e-5), name
