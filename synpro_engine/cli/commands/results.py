"""Commands that show or hand out what lies in the directories of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from synpro_engine.cli import trace_text
from synpro_engine.cli.commands.opening import opened_cycle
from synpro_engine.cli.options import must_be_writable
from synpro_engine.config import UserError, json_text
from synpro_engine.cycle.run_layout import CONFIG
from synpro_engine.cycle.summaries import comparison
from synpro_engine.cycle.tracing import trace_document, trace_token
from synpro_engine.report import write_comparison
from synpro_engine.train.config import WeightsOf


def report(recipe: str, overrides: Sequence[str], directory: Path | None, output: Path | None = None) -> None:
    """Write the report of what is there, which lies in its run's directory."""
    if output is not None:
        raise UserError("--output: is for the page of several runs; a run's report.html lies in its --dir")
    if directory is None and (Path(recipe) / CONFIG).is_file():
        raise UserError(f"{recipe}: is a run; name another to compare it with, or its recipe and --dir")
    with opened_cycle(recipe, overrides, directory, models=False) as cycle:
        cycle.open_directory()
        cycle.write_report()


def compare(overrides: Sequence[str], directories: Sequence[Path], directory: Path | None, output: Path | None) -> None:
    """Write the page of several runs to `output`. overrides, directory: what does not go with that, if given."""
    given = [*overrides, *([f"--dir {directory}"] if directory is not None else [])]
    if given:
        raise UserError(f"report: of several runs {given[0]} says nothing; each is taken as it is")
    path = output or Path("comparison.html")
    must_be_writable(path, "--output")
    write_comparison(comparison(directories), path)
    print(f"written: {path.resolve()}")


def trace(
    recipe: str,
    overrides: Sequence[str],
    directory: Path | None,
    wanted: str | tuple[str, int, int, int],
    *,
    arm: str | None = None,
    as_json: bool,
) -> None:
    """Print where a document, by its id, or a token (stage, step, row, place in the row) is from.

    arm: of a document, whose texts.
    """
    with opened_cycle(recipe, overrides, directory, models=False) as cycle:
        cycle.open_directory()
        found = trace_document(cycle, wanted, arm) if isinstance(wanted, str) else trace_token(cycle, *wanted)
        if cycle.topology.is_main:
            lines = [json_text(asdict(found), indent=2)] if as_json else trace_text.lines(found)
            for line in lines:
                print(line)


def export(
    recipe: str,
    overrides: Sequence[str],
    directory: Path | None,
    stage: str,
    output: str,
    weights: WeightsOf | None = None,
) -> None:
    """Write one stage's weights as a Hugging Face directory, or the texts that it generated as a corpus.

    output: a path or an address. weights: None takes those that the stage hands on.
    """
    with opened_cycle(recipe, overrides, directory) as cycle:
        cycle.open_directory()
        cycle.export(stage, output, weights)
