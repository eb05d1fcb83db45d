"""What each `synpro` command does: read the recipe, join the job, call the cycle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from synpro_engine.cycle import Cycle, load_recipe, score_documents
from synpro_engine.dist import launched, say


@contextmanager
def _cycle(recipe: str, overrides: Sequence[str], directory: Path | None) -> Iterator[Cycle]:
    resolved = load_recipe(recipe, overrides)
    with launched(resolved.parallel, resolved.seed) as topology:
        yield Cycle(resolved, directory or Path("runs") / resolved.name, topology)


def run_until(recipe: str, overrides: Sequence[str], directory: Path | None, until: str | None) -> None:
    """Bring the run up to the last stage of a command; None: all of it, and the report."""
    with _cycle(recipe, overrides, directory) as cycle:
        cycle.run(until)
        say(cycle.topology, f"results are in {cycle.directory}")


def report(recipe: str, overrides: Sequence[str], directory: Path | None) -> None:
    """Write the report of what is there."""
    with _cycle(recipe, overrides, directory) as cycle:
        cycle.open_directory()
        cycle.write_report()


def influence(recipe: str, overrides: Sequence[str], directory: Path | None, documents: str, output: Path) -> None:
    """Score documents with the run's theta and its newest probe."""
    with _cycle(recipe, overrides, directory) as cycle:
        cycle.open_directory()
        score_documents(cycle, documents, output)


def export(recipe: str, overrides: Sequence[str], directory: Path | None, stage: str, output: Path) -> None:
    """Write one stage's weights as a Hugging Face directory."""
    with _cycle(recipe, overrides, directory) as cycle:
        cycle.open_directory()
        cycle.export(stage, output)


def keys(recipe: str, overrides: Sequence[str]) -> None:
    """Print every key of a recipe with its value and what it means."""
    from synpro_engine.config.describe import describe

    for line in describe(load_recipe(recipe, overrides)):
        print(line)


def doctor() -> None:
    """Print the table of choices."""
    from synpro_engine.backend.doctor import diagnose, import_faults

    choices = diagnose()
    widths = [max(len(text) for text in column) for column in zip(*((c.part, c.uses) for c in choices), strict=True)]
    for choice in choices:
        print(f"{choice.part:<{widths[0]}}  {choice.uses:<{widths[1]}}  {choice.why}".rstrip())
    for fault in import_faults():
        print(f"broken: {fault}")
