"""Every op beside plain PyTorch: right first, then its time, and how near that is to the machine's limit.

    python -m benchmarks.kernels                         # this machine: CUDA where there is one, else the CPU
    python -m benchmarks.kernels --only grad_dot --rounds 30
    python -m benchmarks.kernels --against main          # this tree and a commit in turns
    TRITON_INTERPRET=1 python -m benchmarks.kernels --sizes tiny --rounds 1    # the Triton kernels, without a GPU

The limit is the longer of two: reading and writing what must be, at the rate of a large copy, and multiplying what must
be, at that of a large product; both are measured in the same turns. Exit status 1 where an op is wrong, or has become
slower than `--against`. Where an op has rivals they take turns too, and who is not here is said; more compete in
`benchmarks.linear_logprob`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.against import Earlier, is_commit, told, with_commit
from benchmarks.common.command import again, command_line
from benchmarks.common.environment import QUIET, ForeignLoad, environment
from benchmarks.common.faults import ended, failure, takes_more
from benchmarks.common.harness import Step, clock_for, interleave, measured_peak, summarise
from benchmarks.common.records import judge, write_lines
from benchmarks.common.tables import aligned
from benchmarks.kernels.case import SIZES, Case, Run, Sizes
from benchmarks.kernels.cases import cases
from benchmarks.kernels.interpreted import interpreted
from synpro_engine.config import UserError

Record = Mapping[str, Any]
_PRODUCT, _COPY = "large product", "large copy"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns 2 after a user's fault."""
    parser = command_line("kernels", __doc__, "--rivals", "--output", "--against", "--turns")
    add = parser.add_argument
    add("--only", default="", metavar="TEXT", help="ops whose name has this in it")
    add("--rounds", type=int, default=9)
    add("--sizes", choices=tuple(SIZES), help="default: those of the device")
    add("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, else float32")
    given = parser.parse_args(argv)
    sys.path.extend(given.rivals)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, given.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    try:
        if is_commit(given.against):
            return told(with_commit(given.against, "benchmarks.kernels", again(argv), figures, turns=given.turns))
        sizes, earlier = SIZES[given.sizes or device.type], Earlier.read(given.against)
        records: list[Record] = []
        with interpreted():
            for record in measured(sizes, dtype, device, only=given.only, rounds=given.rounds):
                records.append(record)
                if given.output:
                    write_lines(given.output, [record])
        if not records:
            raise UserError(f"--only: no op has {given.only!r} in its name")
        print(table(records))
        slower = told(earlier.compared(records, figures)) if earlier else 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(any(record["wrong"] for record in records) or slower)


def measured(
    sizes: Sizes, dtype: torch.dtype, device: torch.device, *, only: str = "", rounds: int = 9
) -> Iterator[Record]:
    """A record for each op whose name has `only` in it, up to one after which the device does nothing more."""
    where = environment(device)
    for case in cases(sizes, dtype, device):
        if only in case.name:
            print(case.name, file=sys.stderr, flush=True)
            case = case if sizes.rivals else replace(case, rivals={})
            about = {"bench": "kernels", "sizes": asdict(sizes), "dtype": str(dtype).removeprefix("torch.")}
            try:
                found = measure(case, dtype, device, rounds, sizes.product)
            except Exception as error:  # of one op, which must not lose the others
                found = {"op": case.name, "wrong": failure(error)}
            yield {**about, **found, "environment": where}
            if not takes_more(device):
                print(ended(device, case.name), file=sys.stderr)
                return


@torch.no_grad()
def measure(
    case: Case, dtype: torch.dtype, device: torch.device, rounds: int, product_side: int | None = None
) -> Record:
    """One op: what is wrong with its results, if anything; times of all, and of the limit's two measures."""
    wrong, rivals = _judged(case)
    product, flops = measured_peak(device, dtype, product_side)
    copy, copied = _copy(device)
    runs: dict[str, Run] = {"ours": case.ours, "plain": case.plain}
    runs |= {name: run for name, (run, _) in rivals.items() if run is not None}
    steps: dict[str, Step] = {name: _step(run, case) for name, run in runs.items()}
    others = ForeignLoad()
    samples = interleave({**steps, _PRODUCT: product, _COPY: copy}, clock_for(device), rounds=rounds, warmups=2)
    timings = {name: summarise(of) for name, of in samples.items()}
    ratios = {
        name: [b.seconds / a.seconds for a, b in zip(samples["ours"], samples[name], strict=True)] for name in runs
    }
    by_flops = case.limit_flops * timings[_PRODUCT].median / flops
    by_bytes = case.limit_bytes * timings[_COPY].median / copied
    return {
        "op": case.name, "wrong": wrong, "timings": {name: vars(of) for name, of in timings.items()},
        "ratio": statistics.median(ratios["plain"]), "ratios": ratios["plain"],
        "rivals": {
            # Beside what is wrong nothing is compared.
            name: {"why": why, "ratio": None if run is None or why else statistics.median(ratios[name])}
            for name, (run, why) in rivals.items()
        },
        "limit_seconds": max(by_flops, by_bytes),
        "limited_by": "products" if by_flops > by_bytes else "memory", "foreign_cpu_share": others.share(),
    }  # fmt: skip


def _judged(case: Case) -> tuple[str, dict[str, tuple[Run | None, str]]]:
    """What is wrong with ours, or nothing; rivals by name, and why they have no figure: not here, failed, or wrong."""
    double = {name: one.double() if one.is_floating_point() else one for name, one in case.inputs.items()}
    plain, truth = case.plain(case.inputs), case.plain(double)

    def faults(found: tuple[Tensor, ...]) -> str:
        results = zip(found, plain, truth, strict=True)
        return "; ".join(verdict.wrong for verdict in (judge(case.name, *of) for of in results) if verdict.wrong)

    rivals: dict[str, tuple[Run | None, str]] = {}
    for name, load in case.rivals.items():
        try:
            run = load()
            rivals[name] = run, (f"WRONG: {found}" if (found := faults(run(case.inputs))) else "")
        except ImportError as error:
            rivals[name] = None, f"is not here ({error})"
        except Exception as error:  # another's fault, which must not end our run, and is told
            rivals[name] = None, failure(error)
    return faults(case.ours(case.inputs)), rivals


def _step(run: Run, case: Case) -> Step:
    return lambda turn: run(case.inputs)


def _copy(device: torch.device) -> tuple[Step, float]:
    source = torch.ones(1 << (28 if device.type == "cuda" else 24), device=device)
    into = torch.empty_like(source)
    return lambda turn: into.copy_(source), 2.0 * source.numel() * source.element_size()


def figures(records: Iterable[Record]) -> dict[str, float | None]:
    """Calls a second of each op, by its dtype and sizes; None of one that is wrong."""
    return {
        f"{record['op']}, {record['dtype']}, {_named(record['sizes'])}": (
            None if record["wrong"] else 1.0 / record["timings"]["ours"]["median"]
        )
        for record in records
        if record.get("bench") == "kernels"
    }


def _named(sizes: Record) -> str:
    """The name of sizes; of such as there are no longer what they are."""
    known = next((name for name, one in SIZES.items() if asdict(one) == dict(sizes)), None)
    return f"{known} sizes" if known else " ".join(f"{key}={value}" for key, value in sizes.items())


def table(records: Sequence[Record]) -> str:
    """For people."""
    lines: list[tuple[str, ...]] = [
        ("op", "ms", "plain PyTorch, ms", "times plain", "of the turns", "limit, ms", "by", "of the limit")
    ]
    timed = [record for record in records if "timings" in record]
    for record in records:
        if "timings" not in record:
            lines.append((record["op"], "-", "-", f"WRONG: {record['wrong']}", *["-"] * 4))
            continue
        mine, theirs = (record["timings"][name]["median"] for name in ("ours", "plain"))
        limit = record["limit_seconds"]
        ratio = f"WRONG: {record['wrong']}" if record["wrong"] else f"{record['ratio']:.2f}"
        spread = f"{min(record['ratios']):.2f}-{max(record['ratios']):.2f}"
        lines.append(
            (
                record["op"], f"{mine * 1e3:.2f}", f"{theirs * 1e3:.2f}", ratio, spread,
                f"{limit * 1e3:.2f}", record["limited_by"], f"{limit / mine:.0%}",
            )
        )  # fmt: skip
    told = [
        f"{record['op']}: {name} {rival['why']}" if rival["ratio"] is None
        else f"{record['op']}: {rival['ratio']:.2f} times as fast as {name}"
        for record in timed for name, rival in record["rivals"].items()
    ]  # fmt: skip
    foreign = max((record["foreign_cpu_share"] for record in timed), default=0.0)
    note = f"others took {foreign:.0%} of the machine meanwhile: these times are not to be quoted"
    return "\n".join([*aligned(lines, right=range(1, 6)), *told, *([note] if foreign > QUIET else [])])


if __name__ == "__main__":
    sys.exit(main())
