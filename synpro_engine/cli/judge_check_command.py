"""`synpro judge-check` as the user types it.

What it does is in `commands/`, imported when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synpro_engine.cli.options import Overrides, Recipe, on_disk


def judge_check(
    recipe: Recipe = "quickstart",
    overrides: Overrides = None,
    judge: Annotated[
        list[str] | None, typer.Option("--judge", metavar="NAME", help="A judge to check; without it, all of them.")
    ] = None,
    texts: Annotated[int, typer.Option("--texts", min=2, help="Slices of the corpus to plant faults in.")] = 60,
    pairs: Annotated[
        int, typer.Option("--pairs", min=2, help="Pairs of each labelled set, for judges of entries.")
    ] = 1000,
    figures: Annotated[
        Path | None,
        typer.Option(
            "--json", help='A JSON file of {judge: {kind: {"auc": x, "n": k, ...}}} to write.', callback=on_disk
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="A JSON file of all that was found to write.", callback=on_disk)
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", help="A file for `reward.judges.NAME.calibration` to write.", callback=on_disk),
    ] = None,
) -> None:
    """Print which planted faults each judge sees, and which labelled pairs it tells apart.

    AUC is the chance that a sound text is rated above a faulty one, agreement the same of two texts of one source; 0.5
    is a judge that sees nothing. Judges are the embedded ones, or those of `reward.judges` (docs/judges.md).
    Faithfulness judges entries: true ones in other words and shortened against those with a fault, and the pairs of
    SciQ, BoolQ and RTE. With --calibrate a map is fitted to the answers of the one judge of entries that --judge names.
    """
    from synpro_engine.cli import commands

    commands.judge_check(
        recipe,
        overrides or [],
        judges=judge or [],
        texts=texts,
        pairs=pairs,
        figures=figures,
        output=output,
        calibrate=calibrate,
    )
