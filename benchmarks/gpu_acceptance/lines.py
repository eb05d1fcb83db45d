"""What a part's records and log say: a line for each figure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.common.harness import Timing
from benchmarks.common.records import Ask, Row
from benchmarks.gpu_acceptance.part import Line, Record
from benchmarks.linear_logprob.asks import asks


def _held(ask: Ask) -> Line:
    figure = "not measured" if ask.figure is None else f"{ask.figure:.4g}"
    sign = ">=" if ask.at_least else "<="
    reached = "-" if ask.figure is None else "yes" if ask.reached else "NO"
    return Line(ask.text, figure, ask.unit.strip(), f"{sign} {ask.limit:g}", reached)


def kernels(records: Sequence[Record], log: str) -> Iterator[Line]:
    """How much faster each op is than plain PyTorch, where it is right."""
    for record in records:
        if record["wrong"]:
            yield Line(record["op"], "-", record["wrong"], "as accurate", "NO")
            continue
        share = record["limit_seconds"] / record["timings"]["ours"]["median"]
        unit = f"x plain PyTorch, {share:.0%} of the limit"
        yield Line(record["op"], f"{record['ratio']:.2f}", unit, "as accurate", "yes")


def races(records: Sequence[Record], log: str) -> Iterator[Line]:
    """How many runs of each op differ."""
    for record in records:
        figure = "-" if record["differing"] is None else str(record["differing"])
        what = record["wrong"] or f"of {record['runs']} runs differ"
        yield Line(record["op"], figure, what, "0, finite", "NO" if record["wrong"] else "yes")


def tests(records: Sequence[Record], log: str) -> Iterator[Line]:
    """What each pytest found, or how far it came."""
    for program in re.split(r"^\$ ", log, flags=re.MULTILINE)[1:]:
        what = " ".join(["pytest", *re.findall(r"(?<= )tests/\S+", program.splitlines()[0])])
        done = re.findall(r"^=*\s*((?:\d+ \w+(?:, )?)+) in [\d.]+s", program, re.MULTILINE)
        if done:
            bad, told = re.search("failed|error", done[-1]), "passed" in done[-1]
            yield Line(what, done[-1], "", "0 failed", "NO" if bad else "yes" if told else "-")
        elif so_far := re.findall(r"\[ *(\d+%)\]$", program, re.MULTILINE):
            yield Line(what, so_far[-1], "done when it was ended", "0 failed", "NO")


def sanitizer(records: Sequence[Record], log: str) -> Iterator[Line]:
    """Errors and hazards."""
    for tool, count in re.findall(r"^=+ (ERROR|RACECHECK) SUMMARY: (\d+)", log, re.MULTILINE):
        what = "memcheck" if tool == "ERROR" else "racecheck"
        yield Line(what, count, "errors" if tool == "ERROR" else "hazards", "0", "NO" if int(count) else "yes")


def linear_logprob(records: Sequence[Record], log: str) -> Iterator[Line]:
    """Its goals."""
    rows = [Row(**{**one, "timing": Timing(**one["timing"]) if one["timing"] else None}) for one in records]
    on_gpu = any("capability" in row.environment for row in rows)
    yield from map(_held, asks(rows, "cuda" if on_gpu else "cpu"))


def persistent(records: Sequence[Record], log: str) -> Iterator[Line]:
    """Each form beside the usual forward of the same sizes."""
    yield from races([one for one in records if one["bench"] == "races"], log)
    timed = [one for one in records if one["bench"] != "races"]
    for record in (one for one in timed if one["contender"].startswith("persistent")):
        what, asked = f"{record['contender']}, T {record['settings']['tokens']}", "as accurate"
        if record["status"] != "ok":
            reached = "-" if record["status"] == "not run" else "NO"
            yield Line(what, "-", f"{record['status']}: {record['reason']}", asked, reached)
            continue
        usual = next(
            one for one in timed if (one["contender"], one["settings"]) == ("linear_logprob", record["settings"])
        )
        unit = f"TFLOP/s; linear_logprob: {usual['status']}"  # nothing is compared with what failed or is wrong
        if usual["status"] == "ok":
            unit = f"TFLOP/s, {usual['timing']['median'] / record['timing']['median']:.2f}x linear_logprob"
        yield Line(what, f"{record['tflops']:.0f}", unit, asked, "yes")


def pretrain(records: Sequence[Record], log: str) -> Iterator[Line]:
    """Losses beside plain PyTorch's; tokens a second, MFU and peak memory alone."""
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


def decode(records: Sequence[Record], log: str) -> Iterator[Line]:
    """Equality of completions with graphs and without, and tokens a second."""
    for record in records:
        what = f"{record['model']}, {record['rows']} rows, top_p {record['top_p']}{', graphs' * record['graphs']}"
        if record["graphs"]:
            # Where sums come in any order two runs without them part as well.
            differing, most = record["differing"], record["differing_without"]
            reached = "yes" if differing <= most else "NO"
            yield Line(f"{what}, equality", str(differing), "completions differ", f"<= {most}", reached)
        unit = f"tokens/s, {1e3 * record['step_seconds']:.1f} ms a step"
        yield Line(what, f"{record['new_tokens_per_s']:,.0f}", unit)


def grpo(records: Sequence[Record], log: str) -> Iterator[Line]:
    """Seconds by part, peak memory, and how far trainer and sampler are apart."""
    for record in records:
        what, seconds = f"{record['model']}, a step of {record['prompts']} x 8 x {record['new']}", record["seconds"]
        yield Line(what, f"{sum(seconds.values()):.2f}", "s, " + ", ".join(f"{k} {v:.2f}" for k, v in seconds.items()))
        yield Line(f"{what}, drawn", f"{record['tokens'] / sum(seconds.values()):,.0f}", "tokens/s of whole steps")
        if record["peak_bytes"]:
            yield Line(f"{what}, peak", f"{record['peak_bytes'] / 1e9:.1f}", "GB")
        right = record["wrong"] or f"{record['sampler_gap']:.3g}"
        yield Line("trainer and sampler", right, "nats apart", "the same", "NO" if record["wrong"] else "yes")


def influence(records: Sequence[Record], log: str) -> Iterator[Line]:
    """A step that is watched beside one that is not."""
    for record in records:
        ratio = record["ratio"]["median"] if record["ratio"] else None
        if record["limit"] is not None:
            asked = {"limit": record["limit"], "at_least": record["at_least"]}
            yield _held(Ask(text=record["contender"], figure=ratio, unit="x a plain step", **asked))
        elif ratio is not None:
            yield Line(record["contender"], f"{ratio:.3f}", "x a plain step")


def smoke(records: Sequence[Record], log: str) -> Iterator[Line]:
    """Reports that were written."""
    for folder in re.findall(r"\S*smoke-\d+/report\.html", log):
        yield Line(f"report of {Path(folder).parent.name}", "written")


def copies(records: Sequence[Record], log: str) -> Iterator[Line]:
    """Equality with steps without copies, peak memory and rates."""
    for record in records:
        way = record["way"]
        yield Line(way, record["wrong"] or "as without", "", "as without", "NO" if record["wrong"] else "yes")
        if record.get("saves") and record["peak_bytes"]:
            unit = f"GB, {record['peak_bytes_without'] / 1e9:.1f} without"
            yield Line(f"{way}, peak", f"{record['peak_bytes'] / 1e9:.1f}", unit)
        if record.get("seconds"):
            yield Line(f"{way}, copied", f"{record['bytes'] / record['seconds'] / 1e9:.2f}", "GB/s")


def layouts(records: Sequence[Record], log: str) -> Iterator[Line]:
    """How far each layout is from one GPU."""
    several = [one for one in records if one["ranks"] > 1]
    for record in several:
        what = f"{record['layout']}, {record['optimizer']}"
        first = f"{record['apart']['first step']:.1g} apart in the first step"
        yield Line(what, "-", record["wrong"] or first, "as on one", "NO" if record["wrong"] else "yes")
    if records and not several:
        yield Line("layouts", "-", "there is one GPU")


def checkpoint(records: Sequence[Record], log: str) -> Iterator[Line]:
    """Seconds and rates of both ways, and equality."""
    for record in records:
        for what in ("save", "load"):
            seconds = record[f"{what}_seconds"]
            unit = f"s, {record['bytes'] / seconds / 1e9:.2f} GB/s"
            yield Line(f"{record['recipe']}, {what}", f"{seconds:.1f}", unit)
        yield Line("tensors after loading", record["wrong"] or "equal", "", "equal", "NO" if record["wrong"] else "yes")
