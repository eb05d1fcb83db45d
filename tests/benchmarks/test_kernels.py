"""The benchmark of the ops: each is right beside plain PyTorch, and what is wrong has no figure."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_acceptance.parts import PARTS
from benchmarks.kernels import __main__ as program
from benchmarks.kernels.case import SIZES, Run
from benchmarks.kernels.cases import cases

SMALL = SIZES["tiny"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
def test_every_op_is_as_right_as_plain_pytorch(dtype: torch.dtype) -> None:
    records = list(program.measured(SMALL, dtype, CPU, rounds=1))
    assert {record["op"]: record["wrong"] for record in records} == {record["op"]: "" for record in records}
    assert len(records) == 18 and not any(record["rivals"] for record in records), "of which no time can be read"
    assert all(record["limit_seconds"] > 0 for record in records)


def test_a_wrong_result_has_no_figure_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = next(case for case in cases(SMALL, torch.float32, CPU) if case.name == "swiglu")
    wrong = type(right)(**{**vars(right), "ours": lambda i: (right.plain(i)[0] + 0.01,)})
    monkeypatch.setattr(program, "cases", lambda *of: [wrong])
    assert program.main(["--rounds", "1"]) == 1
    assert "WRONG" in capsys.readouterr().out
    record = program.measure(wrong, torch.float32, CPU, 1)
    about = {"bench": "kernels", "dtype": "float32", "sizes": asdict(SMALL)}
    assert program.figures([{**about, **record}]) == {"swiglu, float32, tiny sizes": None}


def test_an_op_that_fails_is_told_and_loses_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = next(case for case in cases(SMALL, torch.float32, CPU) if case.name == "swiglu")
    failing = replace(right, name="fails", ours=lambda i: (i["nothing"],))
    monkeypatch.setattr(program, "cases", lambda *of: [right, failing, replace(right, name="next")])
    output = tmp_path / "rows.jsonl"
    assert program.main(["--sizes", "tiny", "--rounds", "1", "--output", str(output)]) == 1
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(record["op"], record["wrong"]) for record in records] == [
        ("swiglu", ""), ("fails", "failed: 'nothing'"), ("next", ""),
    ]  # fmt: skip
    assert "WRONG: failed: 'nothing'" in capsys.readouterr().out
    assert program.figures(records)["fails, float32, tiny sizes"] is None
    [told] = [line for line in PARTS["kernels"].lines(records, "") if line.what == "fails"]
    assert (told.figure, told.unit, told.reached) == ("-", "failed: 'nothing'", "NO")


def test_behind_an_op_after_which_the_device_does_nothing_more_none_is_run_and_records_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = next(case for case in cases(SMALL, torch.float32, CPU) if case.name == "swiglu")
    breaking = replace(right, name="breaks", ours=lambda i: (i["nothing"],))
    monkeypatch.setattr(program, "cases", lambda *of: [right, breaking, replace(right, name="next")])
    answers = iter([True, False])
    monkeypatch.setattr(program, "takes_more", lambda device: next(answers))
    output = tmp_path / "rows.jsonl"
    assert program.main(["--sizes", "tiny", "--rounds", "1", "--output", str(output)]) == 1
    assert [json.loads(line)["op"] for line in output.read_text().splitlines()] == ["swiglu", "breaks"]
    assert "does nothing more for this process after breaks" in capsys.readouterr().err.splitlines()[-1]


def test_an_op_that_is_none_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert program.main(["--only", "nothing", "--output", str(tmp_path / "x.jsonl")]) == 2
    assert "no op has 'nothing' in its name" in capsys.readouterr().err


def test_a_picked_op_is_written_and_held_to_earlier_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, tiny = tmp_path / "rows.jsonl", ["--sizes", "tiny", "--rounds", "1"]
    assert program.main(["--only", "skinny_linear", *tiny, "--output", str(output)]) == 0
    (record,) = [json.loads(line) for line in output.read_text().splitlines()]
    record["timings"]["ours"]["median"] /= 1e6  # as if it had once been a million times as fast
    output.write_text(json.dumps(record) + "\n")
    assert program.main(["--only", "skinny_linear", *tiny, "--against", str(output)]) == 1
    assert "SLOWER" in capsys.readouterr().out


def test_rivals_are_right_or_have_no_figure_and_who_is_not_here_is_said() -> None:
    case = next(case for case in cases(SMALL, torch.float32, CPU) if case.name == "swiglu")

    def broken() -> Run:
        return lambda i: (case.plain(i)[0] + 0.01,)

    def gone() -> Run:
        raise ImportError("No module named 'gone'")

    def failing() -> Run:
        return lambda i: (i["nothing"],)

    rivals = {"twin": lambda: case.plain, "broken": broken, "gone": gone, "failing": failing}
    record = program.measure(replace(case, rivals=rivals), torch.float32, CPU, 1, 64)
    assert record["wrong"] == "" and record["rivals"]["twin"]["ratio"] > 0
    assert {name: rival["ratio"] for name, rival in record["rivals"].items() if name != "twin"} == dict.fromkeys(
        ("broken", "gone", "failing")
    )
    table = program.table([record])
    assert "times as fast as twin" in table and "broken WRONG" in table and "failing failed: 'nothing'" in table
    assert "swiglu: gone is not here (No module named 'gone')" in table
