"""The parts: what each runs, at full size and on a CPU, and what its records and log say.

A part's module does the work and can be called by itself; this file knows arguments and figures alone.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common.harness import Timing
from benchmarks.common.processes import command
from benchmarks.common.records import Ask, Row
from benchmarks.gpu_acceptance.layouts import LAYOUTS
from benchmarks.linear_logprob.asks import asks
from synpro_kernels.common.triton_status import triton_status

Record = Mapping[str, Any]
_USUAL = "linear_logprob"
_COPIES, _LAYOUTS = "benchmarks.gpu_acceptance.copies", "benchmarks.gpu_acceptance.layouts"


class Line(NamedTuple):
    """One figure for people; `asked` and `reached` are empty where nothing is asked."""

    what: str
    figure: str
    unit: str = ""
    asked: str = ""
    reached: str = ""


@dataclass(frozen=True)
class Program:
    """One process of a part."""

    arguments: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a part runs: at tiny shapes on the CPU or not, its folder, and how many GPUs there are (CPU: 1)."""

    dry: bool
    folder: Path
    gpus: int

    def output(self, part: str) -> tuple[str, str]:
        """The option that has a benchmark write its records."""
        return "--output", str(self.folder / f"{part}.jsonl")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One row of the table below."""

    about: str
    programs: Callable[[Place], list[Program]]
    lines: Callable[[Sequence[Record], str], Iterator[Line]]
    """Of records and log."""
    missing: Callable[[], str | None] = lambda: None
    """Why it cannot run here."""
    seconds: float = 540.0


def _ran(module: str, *arguments: str, **variables: str) -> Program:
    return Program(command(module, *arguments), variables)


def _ranks(count: int, module: str, *arguments: str) -> Program:
    """The same on so many GPUs of this machine."""
    return _ran("torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", module, *arguments)


def _interpreted(place: Place) -> dict[str, str]:
    return {"TRITON_INTERPRET": "1"} if place.dry and triton_status()[0] else {}


def _held(ask: Ask) -> Line:
    figure = "not measured" if ask.figure is None else f"{ask.figure:.4g}"
    sign = ">=" if ask.at_least else "<="
    reached = "-" if ask.figure is None else "yes" if ask.reached else "NO"
    return Line(ask.text, figure, ask.unit.strip(), f"{sign} {ask.limit:g}", reached)


# ---- what is run -----------------------------------------------------------------------------------------------------


def _kernels(place: Place) -> list[Program]:
    tiny = ("--sizes", "tiny", "--rounds", "1") if place.dry else ()
    more = _interpreted(place)
    return [_ran("benchmarks.kernels", "--dtype", "bfloat16", *tiny, *place.output("kernels"), **more)]


def _races(place: Place) -> list[Program]:
    tiny = ("--sizes", "tiny", "--runs", "2") if place.dry else ()
    return [_ran("benchmarks.gpu_acceptance.races", *tiny, *place.output("races"), **_interpreted(place))]


def _tests(place: Place) -> list[Program]:
    def those(*where: str, named: str = "", few: str = "", **more: str) -> Program:
        chosen = few if place.dry and few else named
        return _ran("pytest", "-q", "-rf", "-m", "not slow", *(("-k", chosen) if chosen else ()), *where, **more)

    triton, compiled = "tests/kernels/triton_kernels", "tests/kernels/compiled"
    # Apart: what was asked is told where time is over in what comes next. Last, what a CPU could tell as well.
    return [
        those("tests/train/test_operations.py", "tests/model/test_context.py", named="on_a_gpu or fused_kernels"),
        those(triton, few="views_with_gaps", **_interpreted(place)),
        those(f"--ignore={triton}", f"--ignore={compiled}", "tests/kernels", named="cuda"),
        those(compiled, few="no_kernel"),
    ]


def _sanitizer(place: Place) -> list[Program]:
    again = command("benchmarks.gpu_acceptance.races", "--sizes", "tiny", "--runs", "2")
    # The allocator's blocks are larger than tensors: what is written behind one would stay within its block.
    more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", **_interpreted(place)}
    tools = ("memcheck", "racecheck")
    return [Program(["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *again], more) for tool in tools]


def _linear_logprob(place: Place) -> list[Program]:
    ours = "linear_logprob,linear_cross_entropy,materialised,chunked"
    tiny = ("--tokens", "64", "--width", "32", "--vocab", "257", "--rounds", "1", "--only", ours, "--no-memory")
    options = tiny if place.dry else ("--rounds", "5")
    return [_ran("benchmarks.linear_logprob", *options, *place.output("linear_logprob"))]


def _persistent(place: Place) -> list[Program]:
    def forward(*options: str) -> Program:
        only = ("--only", f"{_USUAL},persistent,persistent_in_turn", "--passes", "forward", "--no-memory")
        return _ran("benchmarks.linear_logprob", *only, *options, *place.output("persistent"))

    def repeated(form: str) -> Program:
        tiny = ("--sizes", "tiny", "--runs", "2") if place.dry else ()
        options = ("--only", f"{_USUAL}, forward", *tiny, *place.output("persistent"))
        return _ran("benchmarks.gpu_acceptance.races", *options, SYNPRO_PERSISTENT=form, **_interpreted(place))

    tiny = ("--tokens", "65", "--width", "64", "--vocab", "257", "--rounds", "1")
    odd = ("--tokens", "1003", "--width", "192", "--vocab", "50257", "--rounds", "1")
    # Where most can go wrong first: what hangs later leaves what it told.
    timed = [forward(*tiny)] if place.dry else [forward(*odd), forward("--rounds", "7")]
    return [*timed, repeated("together"), repeated("in-turn")]


def _pretrain(place: Place) -> list[Program]:
    def steps(*options: str) -> Program:
        return _ran("benchmarks.pretrain", *options, *place.output("pretrain"))

    both = ("--only", "synpro_engine,plain-pytorch")
    if place.dry:
        return [steps("smoke", *both, "--rounds", "1", "--warmups", "1")]
    # Right first, in few rows, for plain PyTorch keeps whole logits; then alone, in the recorded micro-batches.
    alone = ("--only", "synpro_engine", "--rounds", "5", "--memory")
    return [
        steps("synpro-400m", "pretrain.micro_batch=2", *both, "--rounds", "3"),
        steps("synpro-400m", *alone, "--micro-batches", "4"),
        steps("synpro-1.1b", *alone, "--micro-batches", "2"),
    ]


def _decode(place: Place) -> list[Program]:
    tiny = ("--recipe", "smoke", "--rows", "8", "--top-p", "0.9", "--prompt", "16", "--new", "4") if place.dry else ()
    return [_ran("benchmarks.generate", "--graphs", *tiny, *place.output("decode"))]


def _grpo(place: Place) -> list[Program]:
    tiny = ("--recipe", "smoke", "--prompts", "2", "--prompt", "256", "--new", "8", "--steps", "2") if place.dry else ()
    options = ("--folder", str(place.folder), *tiny, *place.output("grpo"))
    return [_ran("benchmarks.gpu_acceptance.grpo", *options)]


_INFLUENCE = '{"layers":8,"d_model":1024,"heads":16,"ffn":4096,"seq_len":1024,"step_rows":8,"step_micro_batch":4,"reference_tokens":16384}'  # fmt: skip # noqa: E501
_TINY_INFLUENCE = '{"layers":1,"d_model":64,"heads":2,"ffn":128,"seq_len":64,"vocab":512,"reference_tokens":256}'


def _influence(place: Place) -> list[Program]:
    options = ("--repeats", "1", "--set", _TINY_INFLUENCE) if place.dry else ("--repeats", "5", "--set", _INFLUENCE)
    return [_ran("benchmarks.influence_cost", "--parts", "in-run", *options, *place.output("influence"))]


def _smoke(place: Place) -> list[Program]:
    def run(ranks: int) -> Program:
        told = ("run", "smoke", "--dir", str(place.folder / f"smoke-{ranks}"), "dtype=bfloat16")
        return _ran("synpro_engine", "launch", "--nproc-per-node", str(ranks), *told)

    # Its batches are small: not every number of data-parallel ranks divides them, and two do.
    return [run(ranks) for ranks in sorted({1, min(2, place.gpus)})]


def _copies(place: Place) -> list[Program]:
    # Less vocabulary: drawing it on the CPU would take longer than the steps.
    tiny = ("--recipe", "smoke") if place.dry else ("model.layers=8", "model.vocab_size=16384")
    options = (*tiny, "pretrain.in_run=null", "--folder", str(place.folder), *place.output("copies"))
    programs = [_ran(_COPIES, *options), _ranks(2, _COPIES, *options)]
    return programs if place.dry or place.gpus > 1 else programs[:1]


def _layouts(place: Place) -> list[Program]:
    tiny = ("--recipe", "smoke", "model.layers=4", "pretrain.micro_batch=1") if place.dry else ()
    folder = str(place.folder / "layouts-checkpoints")
    options = (*tiny, "pretrain.in_run=null", "--folder", folder, *place.output("layouts"))
    # On a CPU two of a kind: the others are held by tests there.
    asked = {2: LAYOUTS[2][:2]} if place.dry else {n: more for n, more in LAYOUTS.items() if n <= place.gpus}
    others = [_ranks(count, _LAYOUTS, *options, *layout) for count, more in asked.items() for layout in more]
    return [_ran(_LAYOUTS, *options), *others]


def _checkpoint(place: Place) -> list[Program]:
    tiny = ("--recipe", "smoke") if place.dry else ()
    options = ("--folder", str(place.folder), *tiny, *place.output("checkpoint"))
    return [_ran("benchmarks.gpu_acceptance.checkpoint", *options)]


# ---- what it says ----------------------------------------------------------------------------------------------------


def _of_kernels(records: Sequence[Record], log: str) -> Iterator[Line]:
    for record in records:
        if record["wrong"]:
            yield Line(record["op"], "-", record["wrong"], "as accurate", "NO")
            continue
        share = record["limit_seconds"] / record["timings"]["ours"]["median"]
        unit = f"x plain PyTorch, {share:.0%} of the limit"
        yield Line(record["op"], f"{record['ratio']:.2f}", unit, "as accurate", "yes")


def _of_races(records: Sequence[Record], log: str) -> Iterator[Line]:
    for record in records:
        figure = "-" if record["differing"] is None else str(record["differing"])
        what = record["wrong"] or f"of {record['runs']} runs differ"
        yield Line(record["op"], figure, what, "0, finite", "NO" if record["wrong"] else "yes")


def _of_tests(records: Sequence[Record], log: str) -> Iterator[Line]:
    for program in re.split(r"^\$ ", log, flags=re.MULTILINE)[1:]:
        what = " ".join(["pytest", *re.findall(r"(?<= )tests/\S+", program.splitlines()[0])])
        done = re.findall(r"^=*\s*((?:\d+ \w+(?:, )?)+) in [\d.]+s", program, re.MULTILINE)
        if done:
            bad, told = re.search("failed|error", done[-1]), "passed" in done[-1]
            yield Line(what, done[-1], "", "0 failed", "NO" if bad else "yes" if told else "-")
        elif so_far := re.findall(r"\[ *(\d+%)\]$", program, re.MULTILINE):
            yield Line(what, so_far[-1], "done when it was ended", "0 failed", "NO")


def _of_sanitizer(records: Sequence[Record], log: str) -> Iterator[Line]:
    for tool, count in re.findall(r"^=+ (ERROR|RACECHECK) SUMMARY: (\d+)", log, re.MULTILINE):
        what = "memcheck" if tool == "ERROR" else "racecheck"
        yield Line(what, count, "errors" if tool == "ERROR" else "hazards", "0", "NO" if int(count) else "yes")


def _of_linear_logprob(records: Sequence[Record], log: str) -> Iterator[Line]:
    rows = [Row(**{**one, "timing": Timing(**one["timing"]) if one["timing"] else None}) for one in records]
    on_gpu = any("capability" in row.environment for row in rows)
    yield from map(_held, asks(rows, "cuda" if on_gpu else "cpu"))


def _of_persistent(records: Sequence[Record], log: str) -> Iterator[Line]:
    yield from _of_races([one for one in records if one["bench"] == "races"], log)
    timed = [one for one in records if one["bench"] != "races"]
    for record in (one for one in timed if one["contender"].startswith("persistent")):
        what, asked = f"{record['contender']}, T {record['settings']['tokens']}", "as accurate"
        if record["status"] != "ok":
            reached = "-" if record["status"] == "not run" else "NO"
            yield Line(what, "-", f"{record['status']}: {record['reason']}", asked, reached)
            continue
        usual = next(one for one in timed if (one["contender"], one["settings"]) == (_USUAL, record["settings"]))
        faster = usual["timing"]["median"] / record["timing"]["median"]
        yield Line(what, f"{record['tflops']:.0f}", f"TFLOP/s, {faster:.2f}x {_USUAL}", asked, "yes")


def _of_pretrain(records: Sequence[Record], log: str) -> Iterator[Line]:
    for record in records:
        name = record["recipe"]
        if record["contender"] != "synpro_engine":
            # Beside it ours stands in the record before; where it failed, ours was held to nothing.
            ours = next(one for one in records if one["case"] == record["case"])
            right = "ok" if record["status"] == ours["status"] == "ok" else f"{ours['status']}, {record['status']}"
            yield Line(f"{name}, losses", right, "ours, plain PyTorch", "ok", "yes" if right == "ok" else "NO")
            continue
        if any(one["contender"] != "synpro_engine" and one["case"] == record["case"] for one in records):
            continue
        if "tokens_per_s" in record:
            yield Line(f"{name}, {record['micro_batches']} micro-batches", f"{record['tokens_per_s']:,.0f}", "tokens/s")
            yield Line(f"{name}, MFU", f"{100 * record['mfu']:.1f}", "%")
        if "memory" in record:
            yield Line(f"{name}, peak", f"{record['memory']['peak_bytes'] / 1e9:.1f}", "GB")
        elif "memory_reason" in record:
            yield Line(f"{name}, peak", "-", f"not measured: {record['memory_reason']}")


def _of_decode(records: Sequence[Record], log: str) -> Iterator[Line]:
    for record in records:
        what = f"{record['model']}, {record['rows']} rows, top_p {record['top_p']}{', graphs' * record['graphs']}"
        if record["graphs"]:
            # Where sums come in any order two runs without them part as well.
            differing, most = record["differing"], record["differing_without"]
            reached = "yes" if differing <= most else "NO"
            yield Line(f"{what}, equality", str(differing), "completions differ", f"<= {most}", reached)
        unit = f"tokens/s, {1e3 * record['step_seconds']:.1f} ms a step"
        yield Line(what, f"{record['new_tokens_per_s']:,.0f}", unit)


def _of_grpo(records: Sequence[Record], log: str) -> Iterator[Line]:
    for record in records:
        what, seconds = f"{record['model']}, a step of {record['prompts']} x 8 x {record['new']}", record["seconds"]
        yield Line(what, f"{sum(seconds.values()):.2f}", "s, " + ", ".join(f"{k} {v:.2f}" for k, v in seconds.items()))
        yield Line(f"{what}, drawn", f"{record['tokens'] / sum(seconds.values()):,.0f}", "tokens/s of whole steps")
        if record["peak_bytes"]:
            yield Line(f"{what}, peak", f"{record['peak_bytes'] / 1e9:.1f}", "GB")
        right = record["wrong"] or f"{record['sampler_gap']:.3g}"
        yield Line("trainer and sampler", right, "nats apart", "the same", "NO" if record["wrong"] else "yes")


def _of_influence(records: Sequence[Record], log: str) -> Iterator[Line]:
    for record in records:
        ratio = record["ratio"]["median"] if record["ratio"] else None
        if record["limit"] is not None:
            asked = {"limit": record["limit"], "at_least": record["at_least"]}
            yield _held(Ask(text=record["contender"], figure=ratio, unit="x a plain step", **asked))
        elif ratio is not None:
            yield Line(record["contender"], f"{ratio:.3f}", "x a plain step")


def _of_smoke(records: Sequence[Record], log: str) -> Iterator[Line]:
    for folder in re.findall(r"\S*smoke-\d+/report\.html", log):
        yield Line(f"report of {Path(folder).parent.name}", "written")


def _of_copies(records: Sequence[Record], log: str) -> Iterator[Line]:
    for record in records:
        way = record["way"]
        yield Line(way, record["wrong"] or "as without", "", "as without", "NO" if record["wrong"] else "yes")
        if record.get("saves") and record["peak_bytes"]:
            unit = f"GB, {record['peak_bytes_without'] / 1e9:.1f} without"
            yield Line(f"{way}, peak", f"{record['peak_bytes'] / 1e9:.1f}", unit)
        if record.get("seconds"):
            yield Line(f"{way}, copied", f"{record['bytes'] / record['seconds'] / 1e9:.2f}", "GB/s")


def _of_layouts(records: Sequence[Record], log: str) -> Iterator[Line]:
    several = [one for one in records if one["ranks"] > 1]
    for record in several:
        what = f"{record['layout']}, {record['optimizer']}"
        first = f"{record['apart']['first step']:.1g} apart in the first step"
        yield Line(what, "-", record["wrong"] or first, "as on one", "NO" if record["wrong"] else "yes")
    if records and not several:
        yield Line("layouts", "-", "there is one GPU")


def _of_checkpoint(records: Sequence[Record], log: str) -> Iterator[Line]:
    for record in records:
        for what in ("save", "load"):
            seconds = record[f"{what}_seconds"]
            unit = f"s, {record['bytes'] / seconds / 1e9:.2f} GB/s"
            yield Line(f"{record['recipe']}, {what}", f"{seconds:.1f}", unit)
        yield Line("tensors after loading", record["wrong"] or "equal", "", "equal", "NO" if record["wrong"] else "yes")


PARTS = {
    "kernels": Part(about="every op beside plain PyTorch: right, then speed", programs=_kernels, lines=_of_kernels),
    "races": Part(about="every op 50 times on the same input: equal bits", programs=_races, lines=_of_races),
    "tests": Part(
        about="pytest of the Triton kernels and their machine code", programs=_tests, lines=_of_tests,
        missing=lambda: None if importlib.util.find_spec("pytest") else "no pytest",
    ),
    "sanitizer": Part(
        about="compute-sanitizer's memcheck and racecheck, small shapes", programs=_sanitizer, lines=_of_sanitizer,
        missing=lambda: None if shutil.which("compute-sanitizer") else "no compute-sanitizer on PATH",
    ),
    "linear_logprob": Part(
        about="the output layer against its goals in docs/kernels.md", programs=_linear_logprob,
        lines=_of_linear_logprob,
    ),
    "pretrain": Part(
        about="training steps of synpro-400m and synpro-1.1b", programs=_pretrain, lines=_of_pretrain
    ),
    "decode": Part(
        about="sampling at the size of OLMo-2 1B, with and without CUDA graphs", programs=_decode, lines=_of_decode
    ),
    "grpo": Part(about="steps of tuning at the size of OLMo-2 1B", programs=_grpo, lines=_of_grpo),
    "copies": Part(
        about="steps while activations, checkpoints, models and weights are copied", programs=_copies, lines=_of_copies
    ),
    "layouts": Part(about="steps in each layout of 2, 4 and 8 GPUs beside one", programs=_layouts, lines=_of_layouts),
    "influence": Part(about="what watching a training step costs", programs=_influence, lines=_of_influence),
    "smoke": Part(about="the whole cycle in bf16, on 1 GPU and on 2", programs=_smoke, lines=_of_smoke),
    "checkpoint": Part(about="synpro-400m saved and loaded", programs=_checkpoint, lines=_of_checkpoint),
    "persistent": Part(
        about="the forward with a loading warp, which no GPU has run: right, then speed (sm_90)", programs=_persistent,
        lines=_of_persistent, seconds=120.0,
    ),
}  # fmt: skip
"""Most telling first, and last what might hang."""
