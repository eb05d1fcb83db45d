"""Now against then: what has become slower is told, by every program that can be held against earlier."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.against import ROOT, Comparison, Earlier, told
from benchmarks.common.command import again, command_line
from synpro_engine.config import UserError

# Each at its smallest, as a user types it.
SMALL = {
    "pretrain": ["smoke", "--only", "synpro_engine", "--rounds", "1", "--warmups", "0"],
    "kernels": ["--only", "swiglu", "--sizes", "tiny", "--rounds", "1"],
    "generate": ["--recipe", "smoke", "--rows", "8", "--top-p", "0.9", "--prompt", "16", "--new", "4"],
    "optimizer_step": ["--recipe", "smoke", "--stack", "1x64x64", "--rounds", "1"],
    "rollout": ["--shapes", "1x2x4", "--rows", "1", "--rounds", "1", "--prompt", "16", "--parts", "speed,limit"],
    "influence_cost": [
        "--parts", "scoring", "--repeats", "1", "--set",
        '{"vocab": 400, "layers": 1, "d_model": 16, "heads": 2, "ffn": 16, "seq_len": 32, "rows": 2, "micro_batch": 2}',
    ],
}  # fmt: skip
QUICK = ("generate", "kernels", "optimizer_step")


def program(name: str) -> Any:
    package = (ROOT / "benchmarks" / name).is_dir()
    return importlib.import_module(f"benchmarks.{name}.__main__" if package else f"benchmarks.{name}")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]
)
def test_a_program_is_held_to_its_own_earlier_records(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, module = tmp_path / "earlier.jsonl", program(name)
    module.main([*SMALL[name], "--output", str(earlier)])
    # Among those of another program, on another machine.
    other = {"bench": "another", "environment": {"device": "elsewhere", "threads": 99}}
    records = [other, *(json.loads(line) for line in earlier.read_text().splitlines())]
    real = module.figures
    speeds = real(records)
    assert speeds and all(speed > 0 for speed in speeds.values())
    capsys.readouterr()
    monkeypatch.setattr("benchmarks.common.against.read_lines", lambda path: records)
    for faster in (1e3, 1e-3):  # as if it had once been so many times as fast

        def figures(given: Any, faster: float = faster) -> dict[str, float]:
            then = any(one is known for one in given for known in records)
            return {what: speed * (faster if then else 1.0) for what, speed in real(given).items()}

        monkeypatch.setattr(module, "figures", figures)
        code = module.main([*SMALL[name], "--against", str(earlier)])
        shown = capsys.readouterr().out
        assert all(what in shown for what in speeds)
        assert ("SLOWER" in shown) == (faster > 1)
        assert code == 1 or faster < 1, "0 but for demands that so small a run may not reach"


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_commit_takes_turns_with_this_tree(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(name).main([*SMALL[name], "--against", "HEAD", "--turns", "1"]) in (0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(" now, " in line and " then, " in line for line in lines)


def test_a_run_of_its_own_has_the_arguments_but_where_results_go() -> None:
    typed = ["smoke", "--rounds", "1", "--against", "main", "model.layers=1", "--turns=2", "--memory"]
    assert again(typed) == ["smoke", "--rounds", "1", "model.layers=1", "--memory"]


def test_no_option_has_a_second_name_that_a_run_of_its_own_would_keep() -> None:
    with pytest.raises(SystemExit):
        command_line("x", "About.", "--against").parse_args(["--again", "main"])


def test_several_ranks_are_not_held_against_a_commit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of them would check it out."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert program("generate").main([*SMALL["generate"], "--against", "HEAD"]) == 2
    assert "error: measures one process, and 2 were started" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--against", ""], "--against: names neither a file nor a commit"),
        (["--against", "HEAD", "--output", "x.jsonl"], "--output: a comparison with a commit has none to write"),
        (["--against", "no-such-commit", "--", "model.layers=1"], "no-such-commit is neither a file nor a commit"),
    ],
)
@pytest.mark.parametrize("name", ["generate", "pretrain"])
def test_what_cannot_be_held_against_anything_is_told_before_anything_runs(
    name: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(name).main(arguments) == 2
    assert told in capsys.readouterr().err.strip().splitlines()[-1]


def test_what_is_appended_to_the_file_is_not_what_it_is_held_against(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both, module = tmp_path / "both.jsonl", program("kernels")
    module.main([*SMALL["kernels"], "--output", str(both)])
    records = [json.loads(line) for line in both.read_text().splitlines()]
    for record in records:
        record["timings"]["ours"]["median"] /= 1e6
    both.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert module.main([*SMALL["kernels"], "--output", str(both), "--against", str(both)]) == 1
    assert "SLOWER" in capsys.readouterr().out and len(both.read_text().splitlines()) == 2 * len(records)


def test_what_has_become_slower_ends_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert told([Comparison("x", 1.0, 1.0)]) == 0 and told([]) == 0
    assert told([Comparison("x", 1.0, 1.0), Comparison("y", 1.0, 2.0)]) == 1
    assert capsys.readouterr().out.count("\n") == 3


def test_more_than_a_twentieth_less_is_slower(tmp_path: Path) -> None:
    assert Comparison("x", 94.9, 100).regressed and not Comparison("x", 95.1, 100).regressed
    assert str(Comparison("x", 90.0, 100)).endswith("SLOWER")
    earlier = tmp_path / "then.jsonl"

    def figures(records):
        return {"it": next(iter(records))["speed"]}

    def held(now: Any) -> list[Comparison]:
        then = Earlier.read(str(earlier))
        assert then is not None
        return then.compared(now, figures)

    here = {"environment": {"device": "a", "threads": 1}}
    earlier.write_text(json.dumps({"speed": 100.0, **here}) + "\n")
    (found,) = held([{"speed": 90.0, **here}])
    assert found.regressed
    (gone,) = held([{"speed": None, **here}])
    assert gone.regressed and str(gone) == "it: FAILED or wrong now"
    with pytest.raises(UserError, match=r"then.jsonl: was measured elsewhere \(threads: 1 there, 2 here\)"):
        held([{"speed": 90.0, "environment": {"device": "a", "threads": 2}}])
    earlier.write_text("[]\n")
    with pytest.raises(UserError, match=r"then.jsonl:1: is no record"):
        held([{"speed": 90.0, **here}])
