"""`synpro sweep` as the user types it: its help and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from synpro_engine.cli.options import Overrides, Recipe, on_disk

HELP = """\
Find settings by whole pretrainings: Optuna chooses what each tries, and ends those early that fall behind.

\b
  synpro sweep smoke --over pretrain.optimizer.lr=1e-4..1e-2:log --over pretrain.optimizer.weight_decay=0.1..3:log
  synpro sweep smoke pretrain.max_steps=40 --over pretrain.optimizer.name=adamw,muon --trials 8 --dir runs/found

\b
A range is KEY=LOW..HIGH, with :log evenly over orders of magnitude, with :STEP in steps; or KEY=A,B,... for choices.
Whole settings take whole numbers. Give --over once for each.

\b
Trials are runs of `synpro pretrain` in DIR/trials/NNN. Beside them: best.yaml, a recipe with the best settings that
every command takes; table.txt, trials.jsonl and trials.svg. The same command goes on with what a kill or a signal left,
takes more --trials, and called again beside itself it works on the same sweep: on other machines too, where DIR is on a
file system that all of them see and --storage names a database. See docs/sweeps.md.
"""


def sweep(
    recipe: Recipe,
    over: Annotated[list[str], typer.Option("--over", metavar="KEY=RANGE", help="A setting to vary, and within what.")],
    overrides: Overrides = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Trials in all.", show_default="20, or all of a grid")
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="The sweep's.", show_default="runs/RECIPE-sweep", callback=on_disk),
    ] = None,
    measured: Annotated[
        Literal["reference", "validation"], typer.Option("--measured", help="The held-out text whose loss counts.")
    ] = "reference",
    sampler: Annotated[
        Literal["tpe", "gp", "random", "grid"],
        typer.Option("--sampler", help="What chooses the next trial's settings."),
    ] = "tpe",
    pruner: Annotated[
        Literal["median", "halving", "hyperband", "none"], typer.Option("--pruner", help="What ends trials early.")
    ] = "median",
    prune_after: Annotated[
        int | None,
        typer.Option(
            "--prune-after", min=0, help="Steps of every trial.", show_default="a third, the warm-up at least"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of what is tried.", show_default="the recipe's")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage", metavar="URL", envvar="SYNPRO_STORAGE", help="Of a database.", show_default="DIR/study.db"
        ),
    ] = None,
) -> None:
    """Find settings by whole pretrainings."""
    from synpro_engine.config import verification
    from synpro_engine.cycle import load_recipe
    from synpro_engine.dist import broadcast_object, launched, on_main
    from synpro_engine.sweep import Sweep, SweepConfig, ranges_of
    from synpro_engine.sweep.study import require_optuna

    require_optuna(sampler)
    resolved = load_recipe(recipe, overrides or [])
    config = SweepConfig(
        trials=trials,
        measured=measured,
        sampler=sampler,
        pruner=pruner,
        prune_after=prune_after,
        seed=seed,
        storage=storage,
    )
    with launched(resolved.parallel, resolved.seed, resolved.layouts) as topology:
        # Rank 0's, for the file may have been edited while the ranks came up.
        resolved = broadcast_object(resolved, topology)
        ranges = on_main(topology, lambda: ranges_of(over, resolved))
        with verification(resolved.verify):
            Sweep(resolved, ranges, directory or Path("runs") / f"{resolved.name}-sweep", config, topology).run()
