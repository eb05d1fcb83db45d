"""`synpro bench` as the user types it: the benchmarks of a checkout by the names of what they measure."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

PARTS = {
    "pretrain": ("benchmarks.pretrain", "training steps: tokens a second, MFU, where the time goes, memory"),
    "rollout": ("benchmarks.rollout", "the sampler beside transformers, and a step beside its limit"),
    "generate": ("benchmarks.generate", "sampling at the size of a recipe's generator, from random weights"),
    "influence": ("benchmarks.influence_cost", "estimators and watched steps beside plain ones"),
    "kernels": ("benchmarks.kernels", "every op beside plain PyTorch, right first"),
    "optimizer": ("benchmarks.optimizer_step", "an update by AdamW and Muon beside torch's own"),
    "grpo": ("benchmarks.grpo_step", "a whole step of tuning beside TRL"),
    "all": ("benchmarks.suite", "a short form of each, and a table of ratios: some minutes"),
}
"""What `synpro bench NAME` runs, and what that measures."""

HELP = (
    """\
Measure how fast this machine is at the engine's work, beside other libraries in the same run.

\b
"""
    + "\n".join(f"  synpro bench {name:<10} {about}" for name, (_, about) in PARTS.items())
    + """

\b
Each takes options of its own, which `synpro bench NAME --help` lists. On several processes:
  synpro launch --nproc-per-node 8 bench pretrain synpro-1.1b parallel.tp=2
  synpro bench pretrain --ranks 1,2                       the same on 1 and 2 processes, and how well it scales
  synpro bench pretrain --against main                    this tree and a commit in turns: has it become slower?
                                                          (as rollout, generate, influence, kernels and optimizer)
"""
)


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(PARTS)}.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGUMENTS] ...")] = None,
) -> None:
    """Hand the arguments over; the help is above."""
    from synpro_engine.config import UserError

    if name not in PARTS:
        raise UserError(f"bench: no {name!r}; there are {', '.join(PARTS)}")
    # Benchmarks are no part of the installed package: they stand in a checkout, beside the engine or where one works.
    for place in (Path(__file__).parents[2], Path.cwd()):
        if (place / "benchmarks" / "__init__.py").is_file():
            sys.path.insert(0, str(place))
            break
    else:
        raise UserError("bench: benchmarks are in the project's checkout, and this is none: call it there")
    module = PARTS[name][0]
    program = importlib.import_module(f"{module}.__main__" if _is_package(module) else module)
    raise typer.Exit(program.main(arguments or []))


def _is_package(module: str) -> bool:
    return hasattr(importlib.import_module(module), "__path__")
