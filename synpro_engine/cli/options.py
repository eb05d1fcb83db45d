"""Arguments that several commands take, as typer wants them declared."""

from __future__ import annotations

import os
import tempfile
from errno import EISDIR
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from synpro_engine.config import UserError
from synpro_engine.config.addresses import is_address, spelled
from synpro_engine.storage.places import local_path, place


def on_disk(param: typer.CallbackParam, value: Any) -> Any:
    """An option's path of this machine, also for `file://`; UserError, naming the option, for another place."""
    if isinstance(value, Path) and is_address(value):
        try:
            return Path(local_path(spelled(value)))
        except ValueError as error:
            raise UserError(f"{_named(param)}: {error}") from None
    return value


def anywhere(param: typer.CallbackParam, value: Any) -> Any:
    """An option's path or address; UserError, naming the option, for what is neither."""
    try:
        return place(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UserError(f"{_named(param)}: {error}") from None


def _named(param: typer.CallbackParam) -> str:
    return param.opts[0] if param.opts[0].startswith("-") else str(param.name)


Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name or a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the recipe's.")
]
Redo = Annotated[
    bool, typer.Option("--redo", help="Remove what --dir holds of other settings, and make it and what follows anew.")
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="ARM", help="Run this arm and what it is made from; may be repeated."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what the run will take, as `synpro plan` does, and start nothing.")
]
Directory = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIR", help="The run's directory.", show_default="runs/RECIPE", callback=on_disk),
]

Profile = Annotated[
    str | None,
    typer.Option(
        metavar="STEPS",
        help="Record steps of training, such as 12 or 10-12, into DIR/profile: a trace and a table of what took most.",
    ),
]
ProfileBy = Annotated[
    Literal["torch", "nsys"],
    typer.Option(help="nsys: mark ranges, and switch the capture of `nsys profile -c cudaProfilerApi` on and off."),
]
ProfileMemory = Annotated[bool, typer.Option("--profile-memory", help="With --profile: record every allocation too.")]
ProfileRanks = Annotated[str, typer.Option(metavar="RANKS", help="With --profile: whose steps, such as 0,8, or all.")]


def must_be_writable(path: Path | None, option: str) -> None:
    """UserError, naming the option, where no file can be written at `path`: before the work, and not after it."""
    if path is None:
        return
    try:
        if path.is_dir():
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{option}: {path}: cannot be written ({error.strerror})") from None
