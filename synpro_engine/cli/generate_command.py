"""`synpro generate` as the user types it: its options, and which go together.

What it does is in `commands/`, imported when it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from synpro_engine.cli.options import Directory, DryRun, Overrides, Recipe, Redo


def generate(
    recipe: Recipe,
    overrides: Overrides = None,
    directory: Directory = None,
    redo: Redo = False,
    dry_run: DryRun = False,
    status: Annotated[
        bool, typer.Option("--status", help="Print how far generation is, its yield, rate and cost; start nothing.")
    ] = False,
    price: Annotated[
        float | None, typer.Option(min=0, help="With --status: of an hour of one worker, a replica of the generator.")
    ] = None,
    join: Annotated[
        bool, typer.Option("--join", help="Take part in what another job of this run generates, until nothing is left.")
    ] = False,
    patience: Annotated[
        float | None,
        typer.Option(
            "--patience", min=0, help="With --join: minutes to wait while nothing is generated.", show_default="10"
        ),
    ] = None,
) -> None:
    """Write the synthetic corpus with its provenance, alone or with other jobs that join."""
    from synpro_engine.cli import commands
    from synpro_engine.config import UserError

    instead = [name for name, one in (("--status", status), ("--join", join), ("--dry-run", dry_run)) if one]
    if len(instead) > 1:
        raise UserError(f"generate: give one of {', '.join(instead)}")
    # Whoever forgets what they belong to wanted to look, or to help, and not to begin hours of work.
    for option, value, needed in (("--price", price, "--status"), ("--patience", patience, "--join")):
        if value is not None and needed not in instead:
            raise UserError(f"generate: {option} is for {needed}, which is not given")
    if status:
        commands.generation_status_of(recipe, overrides or [], directory, price)
    elif join:
        commands.join_generation(recipe, overrides or [], directory, 10.0 if patience is None else patience)
    elif dry_run:
        commands.plan(recipe, overrides or [])
    else:
        commands.run_until(recipe, overrides or [], directory, "generate", redo=redo)
