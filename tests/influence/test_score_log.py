"""The score log: what is written comes back, a resumed run leaves no step twice, damage is named."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from synpro_engine.config import UserError
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.influence import ExampleScore, ScoreLog, by_document, read_scores


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


def score(key: str, value: float, tokens: int = 10) -> ExampleScore:
    return ExampleScore(key=key, tokens=tokens, values={"reference": value})


@pytest.fixture
def path(topology: Topology, tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "scores.jsonl"
    log = ScoreLog(path, topology)
    log.write(1, [score("ä\n", 0.5), score("b", -1.0, tokens=30)])
    log.write(2, [score("ä\n", 1.5, tokens=30), score("empty", 0.0, tokens=0)])
    log.write(3, [score("b", math.nan), score("ä\n", 9.0)])
    return path


def test_records_come_back_in_order_and_what_is_not_finite_as_none(path: Path) -> None:
    found = [(record.step, record.key, record.tokens, record.scores["reference"]) for record in read_scores(path)]
    assert found == [
        (1, "ä\n", 10, 0.5), (1, "b", 30, -1.0), (2, "ä\n", 30, 1.5),
        (2, "empty", 0, 0.0), (3, "b", 10, None), (3, "ä\n", 10, 9.0),
    ]  # fmt: skip


def test_a_document_s_score_is_the_mean_over_its_trained_tokens(path: Path) -> None:
    found = by_document(path, "reference")
    assert found.keys() == {"ä\n", "b"}
    assert found["ä\n"].value == pytest.approx((0.5 * 10 + 1.5 * 30 + 9.0 * 10) / 50) and found["ä\n"].tokens == 50
    assert (found["b"].value, found["b"].tokens) == (-1.0, 30)
    assert by_document(path, "reference", since=2).keys() == {"ä\n"}
    with pytest.raises(UserError, match="step 1 has no scores along `other`"):
        by_document(path, "other")


@pytest.mark.parametrize("torn", ["", '{"step": 4, "key'])
def test_a_resumed_run_goes_on_after_its_step_whatever_a_kill_left(path: Path, torn: str, topology: Topology) -> None:
    with path.open("a") as file:
        file.write(torn)
    assert len(list(read_scores(path))) == 6
    ScoreLog(path, topology, resume_step=2).write(3, [score("c", 2.0)])
    assert [(record.step, record.key) for record in read_scores(path)] == [
        (1, "ä\n"), (1, "b"), (2, "ä\n"), (2, "empty"), (3, "c"),
    ]  # fmt: skip


def test_a_new_run_begins_anew(path: Path, topology: Topology) -> None:
    ScoreLog(path, topology)
    assert list(read_scores(path)) == []


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", '{"step": 1}', '{"step": "1", "key": "a", "tokens": 1, "scores": {}}', '{"id": "doc"}']
)
def test_a_line_that_is_no_record_is_named_and_nothing_is_dropped(path: Path, line: str, topology: Topology) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], line + "\n", *lines[2:]]))
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"{path.name}:3: damaged"):
        list(read_scores(path))
    with pytest.raises(UserError, match=rf"{path.name}:3: damaged"):
        ScoreLog(path, topology, resume_step=3)
    assert path.read_bytes() == before


def test_no_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(read_scores(tmp_path / "scores.jsonl"))


def write_from_ranks(path: Path) -> None:
    with launched(ParallelConfig()) as topology:
        log, rank = ScoreLog(path, topology), topology.dp.rank
        log.write(1, [score(f"{rank}a", rank), score(f"{rank}b", rank)])


def test_all_data_parallel_ranks_are_in_one_file(tmp_path: Path) -> None:
    run_ranks(write_from_ranks, 2, path=tmp_path / "scores.jsonl")
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["0a", "0b", "1a", "1b"]
