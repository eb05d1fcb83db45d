"""Whether tuning raises the reward on slices that it never saw: docs/tuning.md.

One operation's generator is tuned from a finished run's pretrained model, probe and generator, once for each seed, on
slices of its training documents, and measured before and after on slices of its validation documents, the same ones by
the same random numbers for all seeds (`tune.<operation>.held_out`). Settings are those of the run's recipe, but for
what is given behind the options.

    synpro run quickstart --dir runs/quickstart
    python -m benchmarks.tuning.held_out --run runs/quickstart tune.rephrase.steps=20 tune.rephrase.prompts_per_step=4
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.command import command_line
from benchmarks.common.environment import environment
from benchmarks.common.records import write_lines
from benchmarks.common.tables import aligned
from synpro_engine.config import apply_overrides, load_config, read_yaml
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import CONFIG, IMPORT, JUDGES, SERVED, TOKENIZE, Round
from synpro_engine.cycle.settings import SettingsOf, TuneSettings
from synpro_engine.cycle.steps.rewards import Inputs
from synpro_engine.cycle.steps.tuning import tune_stage
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.rl.config import HeldOutConfig
from synpro_engine.rl.held_out import KIND
from synpro_engine.train.metrics import METRICS, read_metrics

Record = dict[str, Any]


def tune_once(settings: TuneSettings, inputs: Inputs, topology: Topology) -> Record:
    """Tune by the settings' seed; what it did to the rewards of the slices that were held out."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        tune_stage(Path(folder), settings, inputs, topology)
        seconds = time.perf_counter() - started
        records = read_metrics(Path(folder) / METRICS)
    curve = [record["reward"] for record in records if record["kind"] == "tune"]
    before, after = (record for record in records if record["kind"] == KIND)
    rewards: Record = {}
    for name in (name for name in before if name.split("/")[0] == "reward"):
        part = name.removeprefix("reward")
        changed = {of: after[f"{of}{part}"] for of in ("difference", "low", "high")}
        rewards[part.removeprefix("/") or name] = {"before": before[name], "after": after[name], **changed}
    seconds -= before["seconds"] + after["seconds"]
    return {"seed": settings.seed, "steps": settings.tune.steps, "seconds": seconds, "curve": curve, "rewards": rewards}


def run(
    directory: Path, operation: str, overrides: Sequence[str], seeds: range, slices: int, members: int
) -> list[Record]:
    """One record for each seed."""
    recipe = load_config(Recipe, apply_overrides(read_yaml(directory / CONFIG), overrides))
    this = Round(1)
    inputs = Inputs(
        tokens=directory / TOKENIZE, theta=directory / this.theta, probe=directory / this.probe,
        base=directory / IMPORT, generator=directory / IMPORT, judges=directory / JUDGES, served=directory / SERVED,
    )  # fmt: skip
    settings, records = SettingsOf(recipe).tune(operation, 1), list[Record]()
    # Before and after, and not on the way.
    held_out = HeldOutConfig(every=settings.tune.steps, slices=slices, members=members)
    measured = settings.tune.model_copy(update={"held_out": held_out})
    with launched(ParallelConfig()) as topology:
        for seed in seeds:
            record = tune_once(settings.model_copy(update={"seed": seed, "tune": measured}), inputs, topology)
            about = {"bench": "tuning_held_out", "operation": operation, "settings": list(overrides)}
            records.append({**about, **record, "environment": environment(topology.device)})
    return records


def table(records: Sequence[Record]) -> str:
    """By seed and reward: before, after, and the difference with its interval."""
    lines = [("seed", "reward", "before", "after", "difference", "95 % interval")]
    for record in records:
        for name, found in record["rewards"].items():
            before, after, mean = (f"{found[key]:.3f}" for key in ("before", "after", "difference"))
            span = f"{found['low']:+.3f} to {found['high']:+.3f}"
            lines.append((str(record["seed"]), name, before, after, mean, span))
    return "\n".join(aligned(lines, right=range(2, 6)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 where the reward does not rise beyond its interval on every seed."""
    parser = command_line("tuning.held_out", __doc__, "--output")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="a run that is through its first probe")
    parser.add_argument("--operation", default="rephrase")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1, metavar="N", help="to go on with the others later")
    parser.add_argument("--slices", type=int, default=48, help="of validation documents, held out")
    parser.add_argument("--members", type=int, default=2, help="completions of each slice, before and after")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the recipe, changed")
    given = parser.parse_args(arguments)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    records = run(given.run, given.operation, given.overrides, seeds, given.slices, given.members)
    if given.output:
        write_lines(given.output, records)
    print(table(records))
    risen = [record["rewards"]["reward"]["low"] > 0.0 for record in records]
    print(f"the reward rose beyond its interval on {sum(risen)} of {len(risen)} seeds")
    return int(not all(risen))


if __name__ == "__main__":
    sys.exit(main())
