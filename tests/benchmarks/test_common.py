"""What the benchmarks share: turns are taken, wrong results get no ratio, records can be read, memory is seen."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.common import harness, records
from benchmarks.common.documents import renew
from benchmarks.common.harness import Sample, Timing
from benchmarks.common.processes import run_fresh
from benchmarks.common.records import Ask, Row
from benchmarks.common.tables import aligned, markdown
from synpro_engine.config import UserError


def timed(contender: str, seconds: float, status: str = "ok") -> Row:
    timing = Timing(median=seconds, low=seconds, high=seconds, cpu_median=seconds, rounds=3)
    return Row(
        bench="b", contender=contender, passes="forward", computes="x", status=status, timing=timing, flops=6e12,
        reason=None if status == "ok" else "off by one",
    )  # fmt: skip


def test_contenders_take_turns_and_warm_ups_are_not_counted():
    calls: list[tuple[str, int]] = []
    steps = {name: lambda turn, name=name: calls.append((name, turn)) for name in "ABC"}

    def clock(step: harness.Step, turn: int) -> Sample:
        step(turn)
        return Sample(seconds=100.0 if turn == 0 else float(turn), cpu_seconds=1.0)

    samples = harness.interleave(steps, clock, rounds=3, warmups=1)
    assert calls == [(name, turn) for turn in range(4) for name in "ABC"]
    assert [sample.seconds for sample in samples["B"]] == [1.0, 2.0, 3.0]
    assert harness.summarise(samples["B"]) == Timing(median=2.0, low=1.5, high=2.5, cpu_median=1.0, rounds=3)


def test_one_slow_sample_does_not_move_the_median():
    samples = [Sample(seconds=seconds, cpu_seconds=0.0) for seconds in (5.0, 1.0, 2.0, 90.0, 3.0)]
    found = harness.summarise(samples)
    assert (found.low, found.median, found.high) == (2.0, 3.0, 5.0)
    assert harness.summarise(samples[:1]).low == 5.0
    with pytest.raises(ValueError, match="at least one"):
        harness.summarise([])


def test_a_wrong_contender_has_a_time_and_no_ratio():
    rows = [timed("plain", 2.0), timed("fast", 1.0), timed("faster", 0.5, "wrong"), timed("top", 1.0)]
    plain, fast, faster, _ = records.complete(rows, baseline="plain", peak="top")
    assert (plain.speedup, fast.speedup, faster.speedup) == (1.0, 2.0, None)
    assert fast.tflops == 6.0 and fast.percent_of_peak == 100.0
    line = records.table([faster]).splitlines()[1]
    assert "500.00" in line and "WRONG: off by one" in line and "x" not in line.split("WRONG")[0].split()[3:]


def test_nothing_is_compared_with_a_wrong_baseline():
    rows = records.complete([timed("plain", 2.0, "wrong"), timed("fast", 1.0)], baseline="plain", peak="none")
    assert [row.speedup for row in rows] == [None, None]
    assert records.ratio(rows[0], rows[1]) is None and records.ratio(None, rows[1]) is None


def test_the_verdict_is_twice_the_plain_error():
    truth = torch.linspace(1.0, 2.0, 5, dtype=torch.float64)
    plain = truth + 0.01
    assert records.judge("x", truth - 0.019, plain, truth).wrong is None
    assert "exceeds" in (records.judge("x", truth - 0.021, plain, truth).wrong or "")
    assert "not finite" in (records.judge("x", truth * math.nan, plain, truth).wrong or "")
    assert "shape" in (records.judge("x", truth[:2], plain, truth).wrong or "")


def test_json_lines_can_be_read_back_and_are_added_to(tmp_path: Path):
    verdict = records.judge("x", torch.full((3,), math.nan), torch.zeros(3), torch.zeros(3, dtype=torch.float64))
    row = replace(timed("a", 1.5, "wrong"), verdicts=[verdict], environment={"versions": {"torch": "2"}})
    path = tmp_path / "results" / "some.jsonl"
    records.write_lines(path, [row])
    records.write_lines(path, [timed("b", 1.0)])
    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert first["timing"]["median"] == 1.5 and first["verdicts"][0]["error"] == "nan"
    assert first["environment"] == {"versions": {"torch": "2"}} and second["contender"] == "b"


def test_what_was_not_measured_is_not_reached():
    asks = [
        Ask(text="rate", figure=1.3, limit=1.25, at_least=True),
        Ask(text="memory", figure=0.2, limit=0.1, at_least=False),
        Ask(text="other", figure=None, limit=1.0, at_least=False),
    ]
    assert [ask.reached for ask in asks] == [True, False, False]
    assert [line.split()[0] for line in records.asked_and_reached(asks).splitlines()[1:]] == ["yes", "NO", "NO"]


def test_growth_of_resident_memory_is_seen_also_after_a_warm_up(tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    script = tmp_path / "grow.py"
    script.write_text(
        "import sys, json\n"
        "import torch; from benchmarks.common.harness import peak_extra_bytes\n"
        "step = lambda turn: torch.ones(12 << 20).sum()\n"
        "print(json.dumps({'bytes': peak_extra_bytes(step, torch.device('cpu')), 'argument': sys.argv[1]}))\n"
    )
    found = run_fresh("grow", ["here"])
    assert found["argument"] == "here"
    assert abs(int(str(found["bytes"])) - (48 << 20)) < 2 << 20  # the kernel counts pages in batches
    script.write_text("raise SystemExit('no such thing')")
    with pytest.raises(RuntimeError, match="no such thing"):
        run_fresh("grow", [])


def test_a_marked_block_is_renewed_and_nothing_else_and_a_page_without_it_stays(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n<!-- b -->\n<!-- end of b -->\n")
    renew(page, {"a": "new", "b": "\\1"})
    whole = "before\n<!-- a -->\nnew\n<!-- end of a -->\nafter\n<!-- b -->\n\\1\n<!-- end of b -->\n"
    assert page.read_text() == whole
    for damaged in (whole.replace("end of b", "end"), whole + "<!-- b -->", "<!-- end of b --> <!-- b --> <!-- a -->"):
        page.write_text(damaged)
        with pytest.raises(UserError, match="one block"):
            renew(page, {"a": "newer", "b": "newer"})
        assert page.read_text() == damaged


def test_tables_have_a_line_for_every_row():
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
    assert aligned([["name", "ms", ""], ["x", "10.5", "-"]], right=range(1, 2)) == ["name    ms", "x     10.5  -"]
