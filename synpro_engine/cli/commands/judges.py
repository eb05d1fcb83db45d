"""`synpro judge-check`: what a recipe's judges see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synpro_engine.cli import judge_table
from synpro_engine.cli.options import must_be_writable
from synpro_engine.config import verification
from synpro_engine.cycle import check_judges_of, load_recipe
from synpro_engine.dist import launched


def judge_check(
    recipe: str,
    overrides: Sequence[str],
    *,
    judges: Sequence[str],
    texts: int,
    pairs: int,
    figures: Path | None,
    output: Path | None,
    calibrate: Path | None,
) -> None:
    """Print what the recipe's judges see; judges: no others; figures, output: JSON files, see `judge_table`.

    calibrate: a file to write for the one judge that is named.
    """
    for path, option in ((figures, "--json"), (output, "--output"), (calibrate, "--calibrate")):
        must_be_writable(path, option)
    resolved = load_recipe(recipe, overrides)
    with verification(resolved.verify), launched(resolved.parallel, resolved.seed) as job:
        topology = job.with_whole_sequences()
        found = check_judges_of(resolved, judges, texts, pairs, topology, calibrate=calibrate is not None)
        if topology.is_main:
            for line in judge_table.lines(found, resolved):
                print(line)
            if figures is not None:
                judge_table.write_figures(figures, found)
            if output is not None:
                judge_table.write(output, found, resolved, texts, pairs)
            if calibrate is not None and found.calibration is not None:
                found.calibration.write(calibrate)
                print(f"written: {calibrate}, for `reward.judges.{found.calibration.judge}.calibration`")
