"""Reward curves of every method of tuning on two tasks, several seeds each, and of settings that go wrong.

`python -m benchmarks.tuning` tunes a small generator of letters from random weights, first towards texts of a length
and then, anew, towards a form. Nothing is measured but rewards and what the logs say beside them. `--docs docs` renews
the picture that docs/tuning.md shows. Exit status 1 where a method does not end above its beginning on every seed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.command import command_line, picked
from benchmarks.common.environment import environment
from benchmarks.common.records import write_lines
from benchmarks.common.tables import aligned
from benchmarks.tuning.figure import draw
from benchmarks.tuning.toy import LONGEST, TASKS, curve
from synpro_engine.rl.config import PRESETS, TuneConfig

_COMMON: dict[str, Any] = {
    "prompts_per_step": 8, "group_size": 8, "micro_batch": 64, "warmup_fraction": 0.0, "checkpoint_every": 0,
    "log_samples": 0, "optimizer": {"lr": 5e-3, "beta2": 0.99, "weight_decay": 0.0},
    "sampling": {"max_new_tokens": LONGEST, "top_p": 1.0},
}  # fmt: skip
# What the presets leave to the size of the model at hand.
_METHODS: dict[str, dict[str, Any]] = {name: {"algorithm": name} for name in PRESETS}
_METHODS["gspo"] |= {"clip_low": 0.02, "clip_high": 0.03, "updates_per_rollout": 2}
_METHODS["cispo"] |= {"updates_per_rollout": 2}
_METHODS["ppo"] |= {"critic": {"optimizer": {"lr": 5e-3, "weight_decay": 0.0}, "warmup_steps": 2}}
FAULTS: dict[str, dict[str, Any]] = {
    "a rate ten times as high": {"optimizer": {"lr": 5e-2, "beta2": 0.99, "weight_decay": 0.0}, "kl_beta": 0.0},
    "16 updates a rollout, no clip": {"updates_per_rollout": 16, "clip_low": 1.0, "clip_high": 1e6, "kl_beta": 0.0},
    "16 updates a rollout, clip 0.2": {"updates_per_rollout": 16, "kl_beta": 0.0},
    "top_p 0.5": {"sampling": {"max_new_tokens": LONGEST, "top_p": 0.5}, "kl_beta": 0.0},
    "KL of weight 1": {"kl_beta": 1.0},
}
"""Changes of `grpo` that are known to do harm."""
_ENDS = 5  # steps that a beginning and an end are the mean of
Record = Mapping[str, Any]


def config_of(name: str, steps: int) -> TuneConfig:
    """The settings of a method or of one that goes wrong."""
    return TuneConfig.model_validate(_COMMON | {"steps": steps} | (_METHODS.get(name) or FAULTS[name]))


def measure(name: str, task: str, seeds: int, steps: int) -> list[Record]:
    """One record for each seed: the curves of what is looked at."""
    records = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            found = curve(config_of(name, steps), task, seed, Path(folder))
        kept = ("reward", "entropy", "kl", "ratio", "ess", "clip_fraction", "length", "silent_groups")
        series = {key: [step[key] for step in found] for key in kept}
        records.append({"bench": "tuning", "name": name, "task": task, "seed": seed, "steps": steps, **series})
    return records


def ends(record: Record) -> tuple[float, float]:
    """Mean reward of the first and of the last steps."""
    reward = record["reward"]
    return statistics.fmean(reward[:_ENDS]), statistics.fmean(reward[-_ENDS:])


def table(records: Sequence[Record]) -> str:
    """Of each method and task the means over seeds, and the least end."""
    lines = [("task", "method", "begins", "ends", "least end", "entropy at the end", "smallest ESS")]
    for task, name in dict.fromkeys((record["task"], record["name"]) for record in records):
        mine = [record for record in records if (record["task"], record["name"]) == (task, name)]
        first, last = zip(*map(ends, mine), strict=True)
        entropy = statistics.fmean(record["entropy"][-1] for record in mine)
        ess = min(value for record in mine for value in record["ess"] if value is not None)
        begun, ended = (f"{statistics.fmean(values):.2f}" for values in (first, last))
        lines.append((task, name, begun, ended, f"{min(last):.2f}", f"{entropy:.2f}", f"{ess:.2f}"))
    return "\n".join(aligned(lines, right=range(2, len(lines[0]))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = command_line("tuning", __doc__, "--docs", "--output")
    parser.add_argument("--methods", default=",".join(PRESETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--no-faults", action="store_true", help="leave out the settings that go wrong")
    given = parser.parse_args(arguments)
    methods = picked(parser, "--methods", given.methods, PRESETS)
    names = [(name, task) for task in TASKS for name in methods]
    names += [] if given.no_faults else [(name, "form") for name in FAULTS]
    where, records = environment(torch.device("cpu")), list[Record]()
    for name, task in names:
        records += [{**one, "environment": where} for one in measure(name, task, given.seeds, given.steps)]
    if given.output:
        write_lines(given.output, records)
    print(table(records))
    if given.docs:
        draw(records, methods, () if given.no_faults else tuple(FAULTS), given.docs / "images" / "tuning_curves.png")
    stuck = [r for r in records if r["name"] in methods and ends(r)[1] <= ends(r)[0]]
    for record in stuck:
        print(f"NO  {record['name']} on {record['task']}, seed {record['seed']}: it does not end above its beginning")
    return int(bool(stuck))


if __name__ == "__main__":
    sys.exit(main())
