"""`synpro report` as the user types it: of one run, or of several beside each other.

What it does is in `commands/`, imported when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synpro_engine.cli.options import Directory, on_disk


def report(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE|RUN", help="A recipe's name or a YAML file; or a run's directory, to compare."),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE|RUN]...", help="Settings that replace the recipe's; or further runs."),
    ] = None,
    directory: Directory = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Of several runs: the file.", show_default="comparison.html", callback=on_disk),
    ] = None,
) -> None:
    """Write report.html from what the run's directory holds, finished or not.

    \b
      synpro report quickstart                          # runs/quickstart/report.html
      synpro report runs/a runs/b --output both.html    # one page that shows runs side by side

    Of several runs' directories a page beside each other: what is set otherwise, losses, tokens, time, gauges of the
    texts. Runs of different tokenizers are compared in bits per byte.
    """
    from synpro_engine.cli import commands

    given = [recipe, *(arguments or [])]
    runs = [one for one in given if "=" not in one or Path(one).is_dir()]
    if len(runs) == 1:
        commands.report(recipe, [one for one in given[1:] if one not in runs], directory, output)
    else:
        commands.compare([one for one in given if one not in runs], [Path(run) for run in runs], directory, output)
