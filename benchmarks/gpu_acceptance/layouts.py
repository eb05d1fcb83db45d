"""Training steps in a layout of several GPUs, over NCCL, beside the same steps on one.

    python -m benchmarks.gpu_acceptance.layouts --folder DIR                                # first: the measure
    torchrun --nproc-per-node 2 -m benchmarks.gpu_acceptance.layouts --folder DIR parallel.tp=2

In fp32, where layouts differ by the order of their sums alone, by each optimizer. The one process leaves a checkpoint
in DIR with its losses and norms of gradients; a layout makes these steps too, then goes on from its own checkpoint and
from that of the one process, which must be the step that it makes without either. Exit status 1 where one differs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import synpro_engine  # noqa: F401 - first: it prepares Megatron's import
from benchmarks.common.command import command_line
from benchmarks.common.environment import environment
from benchmarks.gpu_acceptance.told import tell
from benchmarks.pretrain.case import Case
from benchmarks.pretrain.contenders import Ours
from synpro_engine.config import UserError
from synpro_engine.dist import Topology, launched
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint
from synpro_engine.train.engine import StepResult

_OPTIMIZERS = ("adamw", "muon")
_STEPS, _MICRO_BATCHES = 3, 8  # micro-batches of a step, over all replicas
_FIRST = 1e-4
"""How far apart the first step's loss and norm may be, which see forward and backward alone; as a share."""
_LATER = 1e-2
"""The same of later steps: AdamW makes whole steps of the noise of gradients near zero, and Muon's products are bf16
on a GPU."""
LAYOUTS: Mapping[int, Sequence[tuple[str, ...]]] = {
    2: [
        ("parallel.tp=2", "parallel.sequence_parallel=true"), ("parallel.pp=2",), ("parallel.cp=2",),
        ("pretrain.overlap_gradients=true", "pretrain.overlap_weights=true"),
    ],
    4: [
        ("parallel.tp=2", "parallel.sequence_parallel=true", "parallel.pp=2", "parallel.vpp=2"),
        ("parallel.cp=2", "parallel.tp=2"), ("parallel.pp=2",),
    ],
    8: [("parallel.tp=2", "parallel.pp=2"), ("parallel.cp=2", "parallel.tp=2", "parallel.pp=2")],
}  # fmt: skip
"""What is asked of so many GPUs; ranks that a layout leaves are replicas."""
Figures = list[list[float]]
"""Of each step the loss and the norm of the gradient."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns 2 after a user's fault."""
    parser = command_line("gpu_acceptance.layouts", __doc__, "--output")
    parser.add_argument("--recipe", default="quickstart", help="whose model trains (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the recipe's")
    parser.add_argument("--folder", type=Path, required=True, help="of the checkpoints")
    given = parser.parse_intermixed_args(argv)
    bad = False
    try:
        given.folder.mkdir(parents=True, exist_ok=True)
        case = Case(given.recipe, ("dtype=float32", *given.overrides), _MICRO_BATCHES)
        with launched(case.recipe.parallel) as topology:
            for record in measured(case, topology, given.folder):
                bad |= bool(record["wrong"])
                if topology.is_main:
                    tell(record, given.output, "layout", "optimizer")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(bad)


def measured(case: Case, topology: Topology, folder: Path) -> Iterator[Mapping[str, Any]]:
    """A record for each optimizer. Collective; UserError where the one process has left no checkpoint yet."""
    overlapped = case.recipe.pretrain.overlap_weights
    about = {
        "bench": "layouts", "recipe": case.recipe_name, "ranks": topology.world_size,
        "layout": f"{topology.layout}{', overlapped' * overlapped}", "environment": environment(topology.device),
    }  # fmt: skip
    for name in _OPTIMIZERS:
        of = Case(case.recipe_name, (*case.overrides, f"pretrain.optimizer.name={name}"), case.micro_batches)
        yield {**about, "optimizer": name, **held(*trained(of, topology, folder / name))}


def trained(case: Case, topology: Topology, folder: Path) -> tuple[Figures, Figures, Mapping[str, list[float]]]:
    """The steps here and on one process, and of the step behind them: straight on, and from either checkpoint."""
    alone, own = folder / "alone", folder / ("alone" if topology.world_size == 1 else "own")
    ours = Ours(case.recipe, topology)
    steps = [_step(case, ours, topology, turn) for turn in range(_STEPS)]
    save_checkpoint(own, ours.engine, {"steps": steps})
    behind = {"straight on": _step(case, ours, topology, _STEPS)}
    ours = Ours(case.recipe, topology)
    for name, path in (("from its own checkpoint", own), ("from that of one process", alone)):
        stored: Any = load_checkpoint(path, ours.engine.model, ours.engine)
        behind[name] = _step(case, ours, topology, _STEPS)
    return steps, stored["steps"], behind


def _step(case: Case, ours: Ours, topology: Topology, turn: int) -> list[float]:
    """On this replica's share of the same micro-batches, however many replicas there are."""
    result: StepResult = ours.made(case.batches(turn)[topology.dp.rank :: topology.dp.size])
    return [result.loss, result.grad_norm]


def held(steps: Figures, alone: Figures, behind: Mapping[str, list[float]]) -> dict[str, Any]:
    """How far apart they are, and in `wrong` what is too far."""
    straight, *others = behind
    gaps = {
        "first step": (_gap(steps[0], alone[0]), _FIRST),
        "later steps": (max(map(_gap, steps[1:], alone[1:]), key=_nan_last), _LATER),
    } | {f"the step {name}": (_gap(behind[name], behind[straight]), _LATER) for name in others}
    faults = [f"{name} {gap:.2g} apart" for name, (gap, limit) in gaps.items() if not gap <= limit]  # NaN is wrong too
    return {"steps": steps, "apart": {name: gap for name, (gap, _) in gaps.items()}, "wrong": "; ".join(faults)}


def _gap(one: Sequence[float], other: Sequence[float]) -> float:
    return max((abs(a - b) / abs(b) for a, b in zip(one, other, strict=True)), key=_nan_last)


def _nan_last(value: float) -> tuple[bool, float]:
    return value != value, value


if __name__ == "__main__":
    sys.exit(main())
