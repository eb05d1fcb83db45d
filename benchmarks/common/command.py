"""Command lines: the arguments that programs share, each said once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError

_SHARED: dict[str, dict[str, Any]] = {
    "--against": {
        "metavar": "FILE|REF",
        "help": "earlier records, or a commit in turns with this tree; 5 %% less is told",
    },
    "--docs": {"type": Path, "metavar": "DIR", "help": "renew what the documentation in DIR (docs) shows of it"},
    "--entropy": {"action": argparse.BooleanOptionalAction, "default": True, "help": "compute entropy too"},
    "--output": {"type": Path, "metavar": "FILE", "help": "append JSON lines; ours are in benchmarks/results"},
    "--rivals": {
        "metavar": "DIR",
        "action": "append",
        "default": [],
        "help": "a folder with other libraries; may be repeated",
    },
    "--turns": {"type": int, "default": 3, "help": "processes of each, against a commit (default: %(default)s)"},
    "--set": {"metavar": "JSON", "default": "{}", "help": "any other settings, such as '{\"layers\": 2}'"},
}


_RESULTS = ("--output", "--docs", "--profile", "--plot")


def command_line(name: str, about: str | None, *shared: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks.NAME`. about: the program's docstring, whose first line is shown."""
    found = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=(about or "").split("\n\n")[0], epilog=epilog,
        allow_abbrev=False,  # `again` knows options by their names
    )  # fmt: skip
    for option in shared:
        found.add_argument(option, **_SHARED[option])
    return found


def again(arguments: Sequence[str] | None) -> list[str]:
    """A program's arguments for a run beside a commit: without what they are held against.

    UserError where results shall go somewhere: such a run has figures of turns, and no records.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--against", "--turns", *_RESULTS):
        parser.add_argument(option)
    given, rest = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    refuse_results(given)
    return rest


def refuse_results(given: argparse.Namespace) -> None:
    """UserError where the results of a run beside a commit shall go somewhere."""
    for option in _RESULTS:
        if getattr(given, option.removeprefix("--"), None):
            raise UserError(f"{option}: a comparison with a commit has none to write; leave it out")


def picked(parser: argparse.ArgumentParser, option: str, names: str, known: Iterable[str]) -> list[str]:
    """The names in a list with commas. Ends the program where one is unknown."""
    found, known = names.split(","), list(known)
    for name in found:
        if name not in known:
            parser.error(f"{option}: no {name!r}; there are {', '.join(known)}")
    return found
