"""The benchmarks' own promises: turns are taken, wrong results get no ratio, records can be read, memory is seen."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.common import harness, records
from benchmarks.common.harness import Sample, Timing
from benchmarks.common.records import Ask, Row
from benchmarks.linear_logprob import __main__ as program
from benchmarks.linear_logprob.problem import Inputs, Oracle, Outputs, Shape, differentiate, make_inputs
from benchmarks.linear_logprob.rivals import Compute, Contender, contenders, materialised
from benchmarks.linear_logprob.run import BACKWARD, FORWARD, Problem, Settings, check, run
from benchmarks.static.machine_code import Loop, hot_loops
from synpro_kernels import linear_logprob_definition

SHAPE = Shape(tokens=48, width=24, vocab=301, dtype=torch.float32, logit_std=3.0)
SETTINGS = Settings(device="cpu", shape=SHAPE, entropy=True, rounds=1, warmups=0, seed=1, memory=False, chunk_tokens=16)


def timed(contender: str, seconds: float, status: str = "ok") -> Row:
    timing = Timing(median=seconds, low=seconds, high=seconds, cpu_median=seconds, rounds=3)
    return Row(
        bench="b", contender=contender, passes=FORWARD, computes="x", status=status, timing=timing, flops=6e12,
        reason=None if status == "ok" else "off by one",
    )  # fmt: skip


def named(name: str, compute: Compute) -> Contender:
    return Contender(name=name, what="a test's", load=lambda: compute)


def test_contenders_take_turns_and_warm_ups_are_not_counted():
    calls: list[tuple[str, int]] = []
    steps = {name: lambda turn, name=name: calls.append((name, turn)) for name in "ABC"}

    def clock(step: harness.Step, turn: int) -> Sample:
        step(turn)
        return Sample(seconds=100.0 if turn == 0 else float(turn), cpu_seconds=1.0)

    timings = harness.interleave(steps, clock, rounds=3, warmups=1)
    assert calls == [(name, turn) for turn in range(4) for name in "ABC"]
    assert timings["B"] == Timing(median=2.0, low=1.5, high=2.5, cpu_median=1.0, rounds=3)


def test_one_slow_sample_does_not_move_the_median():
    samples = [Sample(seconds=seconds, cpu_seconds=0.0) for seconds in (5.0, 1.0, 2.0, 90.0, 3.0)]
    found = harness.summarise(samples)
    assert (found.low, found.median, found.high) == (2.0, 3.0, 5.0)
    assert harness.summarise(samples[:1]).low == 5.0
    with pytest.raises(ValueError, match="samples"):
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
    found = harness.run_fresh("grow", ["here"])
    assert found["argument"] == "here"
    assert abs(int(str(found["bytes"])) - (48 << 20)) < 2 << 20  # the kernel counts pages in batches
    script.write_text("raise SystemExit('no such thing')")
    with pytest.raises(RuntimeError, match="no such thing"):
        harness.run_fresh("grow", [])


@pytest.mark.parametrize("entropy", [False, True])
def test_the_truth_is_that_of_the_definition(entropy: bool):
    inputs = make_inputs(SHAPE, torch.device("cpu"), seed=3)
    oracle = Oracle.of(inputs, rows=16, columns=32)
    exact = Inputs(*(leaf.detach().double().requires_grad_() for leaf in inputs[:2]), inputs.target_T)
    found = linear_logprob_definition(*exact, entropy=entropy)
    differentiate(Outputs(logprob=found.logprob, entropy=found.entropy))
    expected = oracle.truth.gradients[entropy]
    torch.testing.assert_close(exact.hidden_TH.grad[oracle.rows_R], expected.hidden_RH)
    torch.testing.assert_close(exact.weight_VH.grad[oracle.columns_S], expected.weight_SH)
    torch.testing.assert_close(found.logsumexp.detach(), oracle.truth.outputs.logsumexp)
    assert {0, SHAPE.tokens - 1} <= set(oracle.rows_R.tolist()) and {0, SHAPE.vocab - 1} <= set(
        oracle.columns_S.tolist()
    )


def test_what_is_wrong_is_found_in_outputs_and_in_gradients():
    problem = Problem(SETTINGS)
    oracle = Oracle.of(problem.sets[0])

    def status(compute: Compute, passes: str) -> tuple[str, str]:
        row, _ = check(problem, oracle, named("it", compute), passes)
        return row.status, row.reason or ""

    def shifted(hidden, weight, target, entropy):
        found = materialised(hidden, weight, target, entropy)
        return found._replace(entropy=found.entropy * 1.001)

    def frozen_row(hidden, weight, target, entropy):
        return materialised(torch.cat([hidden[:1].detach(), hidden[1:]]), weight, target, entropy)

    def summed(hidden, weight, target, entropy):
        return Outputs(loss=-materialised(hidden, weight, target, False).logprob.sum())

    assert status(materialised, BACKWARD) == ("ok", "")
    assert status(shifted, FORWARD)[0] == "wrong" and "entropy" in status(shifted, FORWARD)[1]
    assert status(frozen_row, FORWARD)[0] == "ok" and "grad_hidden" in status(frozen_row, BACKWARD)[1]
    assert "loss" in status(summed, FORWARD)[1] and "grad_weight" in status(summed, BACKWARD)[1]


def test_a_contender_that_is_missing_or_fails_leaves_the_others_their_rows():
    def fail(*_unused):
        raise RuntimeError("no kernel image\nand more")

    def load():
        raise ImportError("No module named 'there'")

    everyone = [
        named("materialised", materialised),
        named("failing", fail),
        Contender(name="absent", what="", load=load),
        Contender(name="elsewhere", what="", load=load, cuda_only=True),
    ]
    (rows,) = run(SETTINGS, everyone, [BACKWARD], lambda name, passes: None, lambda text: None)
    found = {row.contender: (row.status, row.reason) for row in rows}
    assert found["materialised"] == ("ok", None) and found["matmul peak"] == ("ok", None)
    assert found["failing"] == ("failed", "RuntimeError: no kernel image")
    assert found["absent"] == ("not run", "not here (No module named 'there')")
    assert found["elsewhere"] == ("not run", "needs CUDA")
    assert rows[0].environment["torch"] == torch.__version__ and rows[0].settings["dtype"] == "float32"


def test_the_command_writes_a_line_for_every_contender_and_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "some.jsonl"
    options = "--device cpu --tokens 32 --width 16 --vocab 129 --chunk-tokens 8"
    options += " --rounds 1 --warmups 0 --threads 1 --no-memory"
    names = ["linear_logprob", "linear_cross_entropy", "materialised", "chunked", "cce"]
    status = program.main([*options.split(), "--only", ",".join(names), "--output", str(output)])
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert status == 0
    assert [line["contender"] for line in lines] == [*names, "matmul peak"] * 2
    assert all(line["flops"] == 2 * 32 * 16 * 129 for line in lines[:4])
    assert all(line["flops"] == 6 * 32 * 16 * 129 for line in lines[6:10])
    printed = capsys.readouterr().out
    assert "asked / reached" in printed and "not run: needs CUDA" in printed


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]):
    for options in (["--only", "linear_logprob,nobody"], ["--passes", "sideways"], ["--dtype", "int8"]):
        with pytest.raises(SystemExit):
            program.main(["--device", "cpu", *options])
        assert f"{options[0]}: no '{options[1].split(',')[-1]}'" in capsys.readouterr().err


def test_contenders_have_names_of_their_own():
    names = [each.name for each in contenders(64)]
    assert len(set(names)) == len(names) and "linear_logprob" in names


LISTING = """
        /*0100*/                   MOV R1, c[0x0][0x28] ;            /* 0x00 */
        /*0110*/                   LDGSTS.E.128 [R2], [R4.64] ;      /* 0x00 */
        /*0120*/              @!P0 BRA 0x2000 ;                      /* 0x00 */
        /*0130*/                   HGMMA.64x128x16.F32.BF16 R8, gdesc[UR8], R8 ;
        /*0140*/                   NOP ;
        /*0150*/                   BRA 0x180 ;
        /*0160*/               @P1 BRA 0x110 ;
        /*0170*/                   FADD R1, R1, R2 ;
        /*0180*/               @P2 BRA 0x170 ;
        /*0190*/               @P3 BRA 0x100 ;
        /*01a0*/                   SYNCS.PHASECHK P0, [UR4] ;
        /*01b0*/                   BRA 0x130 ;
        /*01c0*/                   BRA 0x1c0 ;
"""


def test_the_hot_loop_is_the_innermost_one_around_matrix_instructions():
    assert hot_loops(LISTING) == [Loop(5, 1, "64x128x16")]
    assert hot_loops(LISTING.replace("HGMMA", "FFMA")) == [Loop(5, 0, "")]
    assert hot_loops("/*0100*/ EXIT ;") == []
