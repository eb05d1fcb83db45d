"""linear_logprob's benchmark at toy size: the truth is true, what is wrong is found and reaches nothing."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.common.harness import Timing
from benchmarks.common.records import Row
from benchmarks.linear_logprob import __main__ as program
from benchmarks.linear_logprob.asks import asks
from benchmarks.linear_logprob.oracle import Oracle
from benchmarks.linear_logprob.problem import Inputs, Outputs, Shape, differentiate, make_inputs
from benchmarks.linear_logprob.rivals import Compute, Contender, contenders, materialised
from benchmarks.linear_logprob.run import BACKWARD, FORWARD, Plan, Problem, check, run
from synpro_kernels import linear_logprob_definition

SHAPE = Shape(tokens=48, width=24, vocab=301, dtype=torch.float32)
PLAN = Plan(
    device="cpu", shape=SHAPE, logit_std=3.0, entropy=True, rounds=1, warmups=0, seed=1, memory=False, chunk_tokens=16
)
TINY = "--device cpu --tokens 32 --width 16 --vocab 129 --chunk-tokens 8 --rounds 1 --warmups 0 --threads 1".split()
ROOT = Path(__file__).resolve().parents[2]


def named(name: str, compute: Compute) -> Contender:
    return Contender(name=name, what="a test's", load=lambda: compute)


@pytest.mark.parametrize("entropy", [False, True])
def test_the_truth_is_that_of_the_definition(entropy: bool):
    inputs = make_inputs(SHAPE, torch.device("cpu"), seed=3, logit_std=3.0)
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
    problem = Problem(PLAN)
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
    (rows,) = run(PLAN, everyone, [BACKWARD], lambda name, passes: None, lambda text: None)
    found = {row.contender: (row.status, row.reason) for row in rows}
    assert found["materialised"] == ("ok", None) and found["matmul peak"] == ("ok", None)
    assert found["failing"] == ("failed", "RuntimeError: no kernel image")
    assert found["absent"] == ("not run", "not here (No module named 'there')")
    assert found["elsewhere"] == ("not run", "needs CUDA")
    assert rows[0].environment["torch"] == torch.__version__ and rows[0].settings["dtype"] == "float32"


def test_the_command_writes_a_line_for_every_contender_and_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "some.jsonl"
    names = ["linear_logprob", "linear_cross_entropy", "materialised", "chunked", "cce"]
    status = program.main([*TINY, "--no-memory", "--only", ",".join(names), "--output", str(output)])
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


@pytest.mark.parametrize("wrong", ["linear_logprob", "materialised"])
def test_a_wrong_result_reaches_no_demand_on_memory_either(wrong: str):
    timing = Timing(median=1.0, low=1.0, high=1.0, cpu_median=1.0, rounds=3)
    row = Row(bench="b", contender="materialised", passes=BACKWARD, computes="x", status="ok", timing=timing)
    rows = [replace(row, extra_bytes=1000), replace(row, contender="linear_logprob", extra_bytes=50)]
    (found,) = [ask for ask in asks(rows, "cpu") if "memory" in ask.text]
    assert found.figure == 0.05 and found.reached
    rows = [replace(each, status="wrong") if each.contender == wrong else each for each in rows]
    assert not any(ask.figure or ask.reached for ask in asks(rows, "cpu"))


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own_from_any_directory(tmp_path: Path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    arguments = [*TINY, "--only", "linear_logprob", "--passes", "forward", "--output", "lines.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.linear_logprob", *arguments],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    line = json.loads((tmp_path / "lines.jsonl").read_text().splitlines()[0])
    assert line["contender"] == "linear_logprob" and line["extra_bytes"] is not None
    assert line["environment"]["commit"] is None or len(line["environment"]["commit"]) == 40
