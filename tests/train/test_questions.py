"""Multiple-choice questions put to a model: held to a plain sum, alike in every layout, once after an interruption."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.data.choices import ChoiceQuestion, QuestionSet
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.train.config import PlateauConfig, TrainConfig
from synpro_engine.train.metrics import METRICS, read_metrics
from synpro_engine.train.questions import Answers, ask
from tests.train.test_trainer import CONFIG, SHAPE, Killed, train

LAYOUTS = {
    "TP2 SP": ParallelConfig(tp=2, sequence_parallel=True),
    "PP2": ParallelConfig(pp=2),
    "DP2": ParallelConfig(),
    "CP2": ParallelConfig(cp=2),
}
ASKED = CONFIG.model_copy(update={"tasks_every": 3, "plateau": None, "eval_every": 2, "checkpoint_every": 2})


def questions(count: int = 7) -> QuestionSet:
    """Of unlike lengths and numbers of answers; the prompt of the third is longer than a window."""
    draw = torch.Generator().manual_seed(4)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, 63, (length,), generator=draw).tolist())

    made = []
    for number in range(count):
        choices = tuple(ids(1 + (number + at) % 4) for at in range(2 + number % 3))
        size = tuple(3 * len(choice) + at for at, choice in enumerate(choices))
        gold = number % len(choices)
        # Of the fourth each answer has its own prompt.
        prompts = tuple(ids(3 + at) for at in range(len(choices))) if number == 3 else ()
        prompt = prompts[gold] if prompts else ids(40 if number == 2 else 2 + number)
        made.append(
            ChoiceQuestion(id=str(number), prompt=prompt, choices=choices, utf8_bytes=size, gold=gold, prompts=prompts)
        )
    return QuestionSet(tuple(made), start_id=0)


def asked_in(layouts: Mapping[str, ParallelConfig], ports: list[int]) -> dict[str, Answers]:
    found = {}
    for (name, layout), port in zip(layouts.items(), ports, strict=True):
        with job(layout, port) as topology:
            found[name] = ask(build_model(SHAPE, topology, seed=3), questions(), seq_len=16, micro_batch=2)
    return found


def alone() -> Answers:
    with launched(ParallelConfig()) as topology:
        return ask(build_model(SHAPE, topology, seed=3), questions(), seq_len=16, micro_batch=2)


def test_answers_are_those_of_each_answer_by_itself_behind_the_end_of_its_prompt() -> None:
    right = per_byte = gold_bytes = 0
    gold_nats = 0.0
    with launched(ParallelConfig()) as topology, torch.no_grad():
        model = build_model(SHAPE, topology, seed=3)
        for question in questions().questions:
            nats = []
            for at, choice in enumerate(question.choices):
                before = question.prompts[at] if question.prompts else question.prompt
                row = torch.tensor([0, *before, *choice][-17:])
                hidden = model.hidden(row[None, :-1])
                logprobs = model.logprobs_from_hidden(hidden, row[None, 1:], temperature=1.0).logprob[0]
                nats.append(-float(logprobs[-len(choice) :].double().sum()))
            scaled = [one / size for one, size in zip(nats, question.utf8_bytes, strict=True)]
            right += nats.index(min(nats)) == question.gold
            per_byte += scaled.index(min(scaled)) == question.gold
            gold_nats += nats[question.gold]
            gold_bytes += question.utf8_bytes[question.gold]
    found = alone()
    assert (found.accuracy, found.accuracy_per_byte) == (right / 7, per_byte / 7)
    assert found.bits_per_byte == pytest.approx(gold_nats / math.log(2) / gold_bytes, rel=1e-6)


def test_every_layout_answers_like_one_process() -> None:
    one = alone()
    results = run_ranks(asked_in, 2, layouts=LAYOUTS, ports=free_ports(len(LAYOUTS)))
    assert results[0] == results[1]
    for name, found in results[0].items():
        assert asdict(found) == pytest.approx(asdict(one), rel=1e-5), name


def test_chance_is_that_of_who_guesses() -> None:
    made = questions(3)
    assert made.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)


def _looks(directory: Path) -> list[dict[str, Any]]:
    found = [record for record in read_metrics(directory / METRICS) if record["kind"] == "tasks"]
    return [{key: value for key, value in record.items() if key != "time"} for record in found]


@pytest.fixture
def topology_of_one() -> Any:
    with launched(ParallelConfig()) as topology:
        yield topology


def test_questions_are_asked_at_the_beginning_on_the_way_and_at_the_end_and_once_each_after_an_interruption(
    topology_of_one: Topology, tmp_path: Path
) -> None:
    config = ASKED.model_copy(update={"max_steps": 5})
    train(topology_of_one, tmp_path / "whole", config, questions={"quiz": questions()})
    with pytest.raises(Killed):
        train(topology_of_one, tmp_path / "killed", config, die_before=4, questions={"quiz": questions()})
    train(topology_of_one, tmp_path / "killed", config, questions={"quiz": questions()})
    whole = _looks(tmp_path / "whole")
    assert [look["step"] for look in whole] == [0, 3, 5]
    assert whole == _looks(tmp_path / "killed")
    assert {key.partition("/")[2] for key in whole[0] if key.startswith("quiz/")} == {
        "accuracy", "accuracy_per_byte", "bits_per_byte",
    }  # fmt: skip


def test_training_is_the_same_whether_or_not_questions_are_asked(topology_of_one: Topology, tmp_path: Path) -> None:
    config = ASKED.model_copy(update={"max_steps": 3})
    quiet = train(topology_of_one, tmp_path / "quiet", config)
    loud = train(topology_of_one, tmp_path / "loud", config, questions={"quiz": questions()})
    assert quiet.losses == loud.losses and not _looks(tmp_path / "quiet")
    # Both fall on the last step: trackers take an evaluation before what was asked behind it, and none after.
    last = [record["kind"] for record in read_metrics(tmp_path / "loud" / METRICS) if record["step"] == 3]
    assert last == ["train", "eval", "tasks"]


def test_the_plateau_ends_a_run_with_a_last_look(topology_of_one: Topology, tmp_path: Path) -> None:
    plateau = PlateauConfig(rule="windows", window=1, min_improvement=0.9)
    config: TrainConfig = ASKED.model_copy(update={"tasks_every": 100, "plateau": plateau})
    ended = train(topology_of_one, tmp_path, config, questions={"quiz": questions(2)})
    assert ended.plateau and [look["step"] for look in _looks(tmp_path)] == [0, ended.step]


def test_a_model_that_is_not_finite_answers_nothing(topology_of_one: Topology) -> None:
    model = build_model(SHAPE, topology_of_one, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    found = ask(model, questions(2), seq_len=16, micro_batch=2)
    assert all(map(math.isnan, asdict(found).values()))
