"""Every op many times on the same input: a race, or memory that was read before it was written, shows in the bits.

    python -m benchmarks.gpu_acceptance.races --output FILE
    TRITON_INTERPRET=1 python -m benchmarks.gpu_acceptance.races --sizes tiny --runs 3

Exit status 1 where two runs differ, a result is not finite, or an op fails.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.command import command_line
from benchmarks.common.environment import environment
from benchmarks.common.faults import ended, failure, takes_more
from benchmarks.common.records import write_lines
from benchmarks.kernels.case import SIZES, Case
from benchmarks.kernels.cases import cases
from benchmarks.kernels.interpreted import interpreted

_LITTER_BYTES = 256 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write."""
    parser = command_line("gpu_acceptance.races", __doc__, "--output")
    parser.add_argument("--sizes", choices=tuple(SIZES), help="default: those of the device")
    parser.add_argument("--only", default="", metavar="TEXT", help="ops whose name has this in it")
    parser.add_argument("--runs", type=int, default=50, help="of each op (default: %(default)s)")
    given = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where, bad = environment(device), False
    with interpreted():
        # One by one: a GPU could not hold the inputs of all.
        for case in cases(SIZES[given.sizes or device.type], torch.bfloat16, device):
            if given.only not in case.name:
                continue
            try:
                found = repeated(case, given.runs, device)
            except Exception as error:  # of one op, which must not lose the others
                found = {"runs": given.runs, "differing": None, "wrong": failure(error)}
            record = {"bench": "races", "op": case.name, **found, "environment": where}
            print(case.name, record["wrong"] or f"{given.runs} runs alike", flush=True)
            bad |= bool(record["wrong"])
            if given.output:
                write_lines(given.output, [record])
            if not takes_more(device):
                print(ended(device, case.name), file=sys.stderr)
                break
    return int(bad)


@torch.no_grad()
def repeated(case: Case, runs: int, device: torch.device) -> Mapping[str, Any]:
    """How many of the runs after the first differ from it in any bit, and what is wrong, if anything."""
    first = [one.clone() for one in case.ours(case.inputs)]
    differing = 0
    for turn in range(1, runs):
        _litter(turn, device)
        differing += any(not _same_bits(a, b) for a, b in zip(first, case.ours(case.inputs), strict=True))
    faults = [f"{differing} of {runs} runs differ from the first"] if differing else []
    faults += ["a result is not finite"] if not all(bool(one.isfinite().all()) for one in first) else []
    return {"runs": runs, "differing": differing, "wrong": "; ".join(faults)}


def _litter(turn: int, device: torch.device) -> None:
    """Leave another number in memory that the op is handed next: what it reads unwritten differs from run to run."""
    size = _LITTER_BYTES if device.type == "cuda" else _LITTER_BYTES >> 8
    torch.full((size // 4,), float(turn), device=device)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Also of NaN, which equals nothing, and of -0, which equals 0."""
    # Flat first: a number without dimensions has no bytes to view.
    return torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))


if __name__ == "__main__":
    sys.exit(main())
