"""One run of linear_logprob's benchmark: check every contender, time them in turns, measure their memory.

Knows the order of things and how a contender's pass becomes a step; inputs, truth, clocks and records are next door.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.common import harness
from benchmarks.common.environment import ForeignLoad, environment
from benchmarks.common.records import Row, complete
from benchmarks.linear_logprob.oracle import Oracle
from benchmarks.linear_logprob.problem import Outputs, Shape, differentiate, make_inputs
from benchmarks.linear_logprob.rivals import Compute, Contender

BENCH = "linear_logprob"
BASELINE = "materialised"
FORWARD, BACKWARD = "forward", "forward+backward"
PEAK = "matmul peak"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a reader needs to run the same again."""

    device: str
    shape: Shape
    logit_std: float
    entropy: bool
    rounds: int
    warmups: int
    seed: int
    memory: bool
    chunk_tokens: int


class Result(NamedTuple):
    """All that one step leaves behind; gradients are None after a forward pass."""

    outputs: Outputs
    grad_hidden: Tensor | None
    grad_weight: Tensor | None

    def tensors(self) -> list[Tensor]:
        """Those that exist."""
        return [tensor for tensor in (*self.outputs, self.grad_hidden, self.grad_weight) if tensor is not None]


class Problem:
    """The inputs that all contenders of a run share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.device = torch.device(plan.device)
        copies = harness.copies_beyond_cache(plan.shape.input_bytes, self.device)
        self.sets = [make_inputs(plan.shape, self.device, plan.seed + k, plan.logit_std) for k in range(copies)]

    def step(self, compute: Compute, passes: str) -> Callable[[int], Result]:
        """One pass of a contender. Only its result holds what it made, so that freeing the result frees all."""

        def step(turn: int) -> Result:
            hidden, weight, target = self.sets[turn % len(self.sets)]
            if passes == FORWARD:
                with torch.no_grad():
                    return Result(compute(hidden, weight, target, self.plan.entropy), None, None)
            outputs = compute(hidden, weight, target, self.plan.entropy)
            differentiate(outputs)
            result = Result(outputs, hidden.grad, weight.grad)
            hidden.grad = weight.grad = None
            return result

        return step

    def useful_flops(self, passes: str) -> float:
        """FLOPs that the pass cannot do without: 2 T H V forward, 6 T H V with the backward pass."""
        return self.plan.shape.forward_flops * (1 if passes == FORWARD else 3)


def check(problem: Problem, oracle: Oracle, contender: Contender, passes: str) -> tuple[Row, harness.Step | None]:
    """Load a contender, run it once and judge it. The row has no time yet; there is no step where it cannot run."""
    row = Row(bench=BENCH, contender=contender.name, passes=passes, computes="-", status="not run")
    if reason := contender.why_not(problem.device, problem.plan.shape):
        return replace(row, reason=reason), None
    try:
        step = problem.step(contender.load(), passes)
        result = step(0)
        verdicts = oracle.verdicts(*result)
    except ImportError as error:
        return replace(row, reason=f"not here ({error})"), None
    except Exception as error:  # whatever a library raises is its result here, and is printed as such
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return replace(row, status="failed", reason=reason), None
    wrong = [verdict.wrong for verdict in verdicts if verdict.wrong]
    names = ("logprob", "logsumexp", "entropy", "loss")
    judged = replace(
        row,
        computes=" ".join(name for name, tensor in zip(names, result.outputs, strict=True) if tensor is not None),
        status="wrong" if wrong else "ok",
        reason="; ".join(wrong) or None,
        verdicts=verdicts,
        flops=problem.useful_flops(passes),
        result_bytes=sum(tensor.nbytes for tensor in result.tensors()),
    )
    return judged, step


def run(
    plan: Plan,
    contenders: Sequence[Contender],
    passes: Sequence[str],
    memory_on_cpu: Callable[[str, str], int | None],
    say: Callable[[str], None],
) -> Iterator[list[Row]]:
    """Measure one pass after the other. `memory_on_cpu(contender, pass)`: peak extra bytes in a process of its own."""
    say("inputs, and their truth in fp64")
    problem = Problem(plan)
    oracle = Oracle.of(problem.sets[0])
    where = environment(problem.device)
    shown = {name: value for name, value in vars(plan).items() if name != "shape"} | {
        **vars(plan.shape),
        "dtype": str(plan.shape.dtype).removeprefix("torch."),
    }
    for each in passes:
        rows = _run_pass(problem, oracle, contenders, each, memory_on_cpu, say)
        yield [replace(row, settings=shown, environment={**where, **row.environment}) for row in rows]


def _run_pass(
    problem: Problem,
    oracle: Oracle,
    contenders: Sequence[Contender],
    passes: str,
    memory_on_cpu: Callable[[str, str], int | None],
    say: Callable[[str], None],
) -> list[Row]:
    found = []
    for contender in contenders:
        say(f"{passes}: checking {contender.name}")
        found.append(check(problem, oracle, contender, passes))
    steps = {row.contender: step for row, step in found if step is not None}
    peak, peak_flops = harness.measured_peak(problem.device, problem.plan.shape.dtype)
    timings, load = _time(problem, steps | {PEAK: peak}, lambda text: say(f"{passes}: {text}"))
    rows = [replace(row, timing=timings.get(row.contender), environment=load) for row, _ in found]
    if problem.plan.memory:
        for k, row in enumerate(rows):
            if row.contender in steps:
                say(f"{passes}: memory of {row.contender}")
                if problem.device.type == "cuda":
                    extra = harness.peak_extra_bytes(steps[row.contender], problem.device)
                else:
                    extra = memory_on_cpu(row.contender, passes)
                rows[k] = replace(row, extra_bytes=extra)
    peak_row = Row(
        bench=BENCH, contender=PEAK, passes=passes, computes="-", status="ok", timing=timings[PEAK], flops=peak_flops
    )
    return complete([*rows, replace(peak_row, environment=load)], baseline=BASELINE, peak=PEAK)


def _time(
    problem: Problem, steps: dict[str, harness.Step], say: Callable[[str], None]
) -> tuple[dict[str, harness.Timing], dict[str, object]]:
    """Timings, and how much CPU time other processes took meanwhile."""
    load = ForeignLoad()
    samples = harness.interleave(
        steps,
        harness.clock_for(problem.device),
        rounds=problem.plan.rounds,
        warmups=problem.plan.warmups,
        progress=say,
    )
    share = round(load.share(), 3)
    return {name: harness.summarise(taken) for name, taken in samples.items()}, {"foreign_cpu_share": share}
