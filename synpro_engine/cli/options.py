"""Arguments that several commands take, as typer wants them declared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name or a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the recipe's.")
]
Redo = Annotated[
    bool, typer.Option("--redo", help="Remove what --dir holds of other settings, and make it and what follows anew.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what the run will take, as `synpro plan` does, and start nothing.")
]
Directory = Annotated[
    Path | None, typer.Option("--dir", metavar="DIR", help="The run's directory.", show_default="runs/RECIPE")
]
