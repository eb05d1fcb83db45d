"""`synpro plan` as the user types it: its options, and which go together.

What it does is in `commands/`, imported when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synpro_engine.cli.options import Overrides, Recipe, on_disk


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Processes of the job; else as few as its layouts take.")
    ] = None,
    tokens_per_s: Annotated[
        float | None, typer.Option(min=1e-9, help="Tokens a second that the job trains on, to count time by.")
    ] = None,
    sampled_per_s: Annotated[
        float | None, typer.Option(min=1e-9, help="Tokens a second that the job samples, likewise.")
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Take both from the metrics of an earlier run's directory.", callback=on_disk),
    ] = None,
    layouts: Annotated[
        bool, typer.Option("--layouts", help="Print the layouts that could pretrain on --ranks, the best first.")
    ] = False,
    memory_gib: Annotated[
        float | None, typer.Option(min=0, help="With --layouts: of a rank; what needs more stands last.")
    ] = None,
    node: Annotated[
        int | None, typer.Option(min=1, help="With --layouts: ranks of a machine.", show_default="8")
    ] = None,
) -> None:
    """Print what a run will take, stage by stage: tokens, FLOPs, memory, disk, time. Nothing is started."""
    from synpro_engine.cli import commands
    from synpro_engine.config import UserError

    times = {"--tokens-per-s": tokens_per_s, "--sampled-per-s": sampled_per_s, "--measured": measured}
    others = times if layouts else {"--memory-gib": memory_gib, "--node": node}
    for option in (option for option, value in others.items() if value is not None):
        raise UserError(f"plan: {option} says nothing {'with' if layouts else 'without'} --layouts")
    if layouts:
        node = node or 8
        commands.plan_layouts(recipe, overrides or [], ranks=ranks or node, memory_gib=memory_gib, node=node)
        return
    commands.plan(recipe, overrides or [], ranks=ranks, measured=measured, trained=tokens_per_s, sampled=sampled_per_s)
