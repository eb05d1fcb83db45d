"""The study on real text: each arm of the comparison from one plateau, by seeds, and what it is worth in unique text.

`python -m benchmarks.real_text` trains what is missing, arm by arm, by the engine's own commands, and writes a record
of each arm and seed; called again it goes on where it was, and with `--minutes` it stops in time. With `--only` several
of it share a directory; `--join` helps another one to generate its texts. `--later` measures influence of texts where
arms end, `--rates` how long all of it will take. `--from FILE --docs docs` renews docs/real-text.md from records alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common.command import command_line, picked
from benchmarks.common.documents import renew
from benchmarks.common.environment import ROOT, environment
from benchmarks.common.records import read_lines, write_lines
from benchmarks.real_text import later
from benchmarks.real_text.commands import Commands, OutOfTime
from benchmarks.real_text.outcome import records_of, theta_of
from benchmarks.real_text.page import blocks, draw, told_elsewhere
from benchmarks.real_text.rates import measure
from benchmarks.real_text.study import FROM_SCRATCH, RECIPE, Study, jobs
from benchmarks.real_text.tuned import settings_record
from synpro_engine.cli.ending import run_script
from synpro_engine.config import UserError, hash_json
from synpro_engine.cycle import Recipe, load_recipe

Record = Mapping[str, Any]
PICTURE = "real_text.png"
_ROUNDING = 1e-4
"""Nats a token; another processor's came out 2.7e-5 off at the last evaluation before theta."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    parser = command_line("real_text", __doc__, "--docs", "--output")
    parser.add_argument("--dir", type=Path, default=Path("runs/real-text"), help="of the runs")
    parser.add_argument("--recipe", type=Path, default=RECIPE, metavar="FILE", help="another one, such as tiny.yaml")
    parser.add_argument("--minutes", type=float, metavar="N", help="stop after so long; the next call goes on")
    parser.add_argument(
        "--only", metavar="NAME,NAME",
        help="of these alone; beside it another process can train others in the same --dir, of those that begin"
        f" at the first step ({', '.join(FROM_SCRATCH)})",
    )  # fmt: skip
    parser.add_argument(
        "--join",
        action="store_true",
        help="help another process in --dir with the texts that it generates, and no more",
    )
    parser.add_argument(
        "--later",
        action="store_true",
        help="measure influence of two arms' texts at theta and where arms end, and do no more",
    )
    parser.add_argument("--rates", action="store_true", help="measure how fast this machine is, and do no more")
    parser.add_argument(
        "--tuned", type=Path, action="append", metavar="FILE", help="records of data_bound, which tuned repetition"
    )
    parser.add_argument("--from", dest="given", type=Path, metavar="FILE", help="records to show, in place of runs")
    given = parser.parse_args(arguments)
    alone = [f"--{name}" for name in ("join", "later", "rates", "only") if getattr(given, name)]
    if len(alone) > 1:
        parser.error(f"{' and '.join(alone)} are not of one call")
    output = given.given or given.output or given.dir / "records.jsonl"
    if given.given:
        _check_recipe(given.recipe, _settings_in(output), output)
    else:
        study = _study(given.recipe, given.dir, output, given.tuned)
        commands = Commands(None if given.minutes is None else 60 * given.minutes)
        try:
            if given.join:
                commands.run(study.join())
            elif given.later:
                for record in later.measure(study, {one["at"] for one in read_lines(output) if "at" in one}):
                    _write(output, [record])
            elif given.rates:
                _write(output, [measure(study, commands)])
            else:
                names = [job.name for job in jobs(study.recipe())]
                _train(study, output, commands, picked(parser, "--only", given.only, names) if given.only else names)
        except OutOfTime:
            print("stopped; the same command goes on from there")
    records, recipe = read_lines(output), load_recipe(str(given.recipe))
    _check_theta(records, recipe, output)
    tables = blocks(records, recipe)
    print("\n\n".join(tables.values()))
    if given.docs:
        renew(given.docs / "real-text.md", tables)
        renew(given.docs / "evidence.md", {"evidence-real-text": told_elsewhere(records)})
        draw(records, given.docs / "images" / PICTURE)
    return 0


def _study(recipe: Path, place: Path, output: Path, swept: Sequence[Path] | None) -> Study:
    """The study, with the settings that its first call wrote down: they are the same for all of it."""
    settings = _settings_in(output)
    if settings is None:
        files = swept or sorted((ROOT / "benchmarks" / "results").glob("*-data_bound.jsonl"))
        settings = settings_record([record for file in files for record in read_lines(file)])
        settings = {**settings, "recipe": _identity(recipe, settings)}
        _write(output, [settings])
    _check_recipe(recipe, settings, output)
    return Study(recipe, place, tuple(settings["settings"]))


def _settings_in(output: Path) -> Record | None:
    """The record that says which study a file is of."""
    known = read_lines(output) if output.exists() else []
    return next((one for one in known if one["bench"] == "real_text_settings"), None)


def _identity(recipe: Path, settings: Record) -> Record:
    whole = load_recipe(str(recipe), settings["settings"])
    return {"name": whole.name, "sha256": hash_json(whole.model_dump(mode="json"))}


def _check_recipe(recipe: Path, settings: Record | None, output: Path) -> None:
    """Raise UserError where the records are of another recipe: a record says its arm and seed alone."""
    if settings is not None and settings["recipe"] != _identity(recipe, settings):
        raise UserError(
            f"{output}: its records are of the recipe `{settings['recipe']['name']}` and other settings than"
            f" {recipe} has; give `--recipe` or another `--dir`"
        )


def _train(study: Study, output: Path, commands: Commands, names: Sequence[str]) -> None:
    """Do the jobs by these names that have no records yet."""
    recipe = study.recipe()
    for job in [job for job in jobs(recipe) if job.name in names]:
        known = [one for one in read_lines(output) if one["bench"] == "real_text"]
        done = {(one["arm"], one["seed"]) for one in known}
        if {(job.name, seed) for seed in (recipe.seeds if job.seed is None else (job.seed,))} <= done:
            continue
        for command in study.commands(job):
            commands.run(command)
            if job.seed is None:
                _check_theta([*known, {"arm": job.name, "curve": theta_of(study)}], recipe, output)
        _write(output, [one for one in records_of(study, job) if (one["arm"], one["seed"]) not in done])


def _check_theta(records: Sequence[Record], recipe: Recipe, output: Path) -> None:
    """Raise UserError where arms went on from different thetas: that makes a difference, and no interval has it.

    The same steps on another processor lead to the same losses up to rounding, which training does not enlarge to more
    than `_ROUNDING`.
    """
    before = [
        (one["arm"], [value for point in one["curve"] if point["step"] < recipe.pretrain.max_steps
                      for value in (point["reference"], point["validation"])])
        for one in records
        if one.get("arm") in recipe.arms
    ]  # fmt: skip
    for arm, losses in before:
        first, expected = before[0]
        if len(losses) != len(expected) or not np.allclose(losses, expected, rtol=0, atol=_ROUNDING):
            raise UserError(
                f"{output}: {arm} goes on from another theta than {first} did; take the arms' records out of it, and"
                " they are made anew"
            )


def _write(output: Path, records: Sequence[Record]) -> None:
    write_lines(output, [{**record, "environment": environment(torch.device("cpu"))} for record in records])


if __name__ == "__main__":
    sys.exit(run_script(main))
