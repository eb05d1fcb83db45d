"""Commands that bring a run on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from synpro_engine.backend.profiling import ProfileRequest, requested, steps_of
from synpro_engine.cli.commands.opening import opened_cycle
from synpro_engine.config import UserError
from synpro_engine.cycle import Cycle
from synpro_engine.cycle.generation import join_generation_of
from synpro_engine.dist import say


@dataclass(frozen=True)
class Look:
    """Which steps a profiler looks at, as the user typed it."""

    steps: str
    by: Literal["torch", "nsys"]
    ranks: str
    memory: bool

    @contextmanager
    def at(self, cycle: Cycle) -> Iterator[None]:
        """Look at what the run does in the `with` block. UserError, naming the option, for what is no such thing."""
        first, last = steps_of(self.steps, "--profile")
        if self.ranks != "all" and not re.fullmatch(r"\d{1,6}(,\d{1,6})*", self.ranks):
            raise UserError(f"--profile-ranks: {self.ranks!r} is neither ranks, such as 0,8, nor all")
        ranks = None if self.ranks == "all" else frozenset(map(int, self.ranks.split(",")))
        request = ProfileRequest(
            root=cycle.directory, first=first, last=last, ranks=ranks, by=self.by, memory=self.memory
        )
        with requested(request):
            yield
        # Rank 0 speaks, and knows of its own steps alone.
        if self.by == "torch" and not request.written and (ranks is None or 0 in ranks):
            say(cycle.topology, f"--profile: {self.steps} was not among the steps made by rank 0")
        for path in request.written:
            say(cycle.topology, f"profile: {path}")


def run_until(
    recipe: str,
    overrides: Sequence[str],
    directory: Path | None,
    until: str | None,
    *,
    redo: bool,
    only: Sequence[str] = (),
    look: Look | None = None,
) -> None:
    """Bring the run up to the last stage of a command; None: all of it, and the report. redo, only: see `Cycle.run`."""
    with opened_cycle(recipe, overrides, directory, generates=True) as cycle:
        with nullcontext() if look is None else look.at(cycle):
            cycle.run(until, redo=redo, only=only)
        say(cycle.topology, f"results are in {cycle.directory}")


def join_generation(recipe: str, overrides: Sequence[str], directory: Path | None, patience: float) -> None:
    """Take part in what another job generates. patience: minutes to wait while nothing is generated."""
    with opened_cycle(recipe, overrides, directory, generates=True) as cycle:
        join_generation_of(cycle, patience_s=60 * patience)
