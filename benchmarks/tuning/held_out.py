"""Whether tuning raises the reward on slices that it never saw: docs/tuning.md.

One operation's generator is tuned from a finished run's pretrained model, probe and generator, once for each seed, on
slices of its training documents. Before and after, completions of slices of its validation documents are drawn by the
same random numbers and rewarded. Settings are those of the run's recipe, but for what is given behind the options.

    synpro run quickstart --dir runs/quickstart
    python -m benchmarks.tuning.held_out --run runs/quickstart tune.rephrase.steps=20 tune.rephrase.prompts_per_step=4
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.command import command_line
from benchmarks.common.environment import environment
from benchmarks.common.records import write_lines
from benchmarks.common.tables import aligned
from synpro_engine.backend import platform
from synpro_engine.config import apply_overrides, load_config, read_yaml
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import CONFIG, IMPORT, JUDGES, SERVED, TOKENIZE, Round, documents_path
from synpro_engine.cycle.settings import SettingsOf, TuneSettings
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.cycle.steps.synthesis import Inputs, build_rewards, tune_stage
from synpro_engine.cycle.steps.weights import load_model
from synpro_engine.data import read_documents
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.model.model import Model
from synpro_engine.reward import Composer
from synpro_engine.rl.rollouts import PromptSource, RolloutWorker
from synpro_engine.rl.trainer import POLICY
from synpro_engine.sampler import Sampler
from synpro_engine.synth import Prompter, choose_slices, operation_named
from synpro_engine.train.metrics import METRICS, read_metrics

_ONCE = 8  # slices that are completed together
Record = dict[str, Any]


class HeldOut:
    """Slices of validation documents, and the rewards of what a policy makes of them."""

    def __init__(self, settings: TuneSettings, inputs: Inputs, slices: int, members: int, topology: Topology) -> None:
        self._weights = settings.reward.weights(settings.operation)
        self._scorer: Composer = build_rewards(settings, inputs, topology)
        tokenizer, operation = open_tokenizer(inputs.base, topology), operation_named(settings.operation)
        self._prompter = Prompter(operation, tokenizer, settings.prompt)
        self._config = settings.tune.model_copy(update={"prompts_per_step": slices, "group_size": members})
        wanted = settings.slices.model_copy(update={"max_slices": slices})
        self._slices = list(
            choose_slices(
                partial(read_documents, str(documents_path(inputs.tokens, "validation"))), wanted, settings.seed,
                lambda text: len(tokenizer.encode(text)), cut=operation.cut,
            )
        )  # fmt: skip

    def measure(self, policy: Model) -> dict[str, list[float]]:
        """By reward, and `reward` for their weighted sum: the mean over its completions of each slice."""
        sampler = Sampler(policy, self._config.sampler, self._prompter.tokenizer.decode)
        worker = RolloutWorker(
            sampler, self._scorer, self._weights, self._prompter, self._config, policy.topology, seed=0
        )
        longest = min(self._prompter.config.max_tokens, sampler.max_prompt_tokens)
        prompts = PromptSource(self._slices, self._prompter, len(self._slices), 0, longest=longest).prompts
        found: dict[str, list[float]] = {}
        for first in range(0, len(prompts), _ONCE):
            places = range(first, min(first + _ONCE, len(prompts)))
            rollouts = worker.score(prompts, places, worker.sample(prompts, 0, places)).rollouts
            size = self._config.group_size
            for group in (rollouts[at : at + size] for at in range(0, len(rollouts), size)):
                parts = {name: [rollout.parts[name] for rollout in group] for name in group[0].parts}
                for name, values in {"reward": [rollout.reward for rollout in group], **parts}.items():
                    found.setdefault(name, []).append(statistics.fmean(values))
        return found


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by the normal law; slices are the sample."""
    mean = statistics.fmean(differences)
    half = 1.96 * statistics.stdev(differences) / len(differences) ** 0.5
    return mean, mean - half, mean + half


def tune_once(
    settings: TuneSettings, inputs: Inputs, held_out: HeldOut, before: Mapping[str, list[float]], topology: Topology
) -> Record:
    """Tune by the settings' seed; what it did to the rewards of the slices that were held out."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        tune_stage(Path(folder), settings, inputs, topology)
        seconds = time.perf_counter() - started
        curve = [record["reward"] for record in read_metrics(Path(folder) / METRICS) if record["kind"] == "tune"]
        policy = load_model(Path(folder) / POLICY, topology, platform.resolve_dtype(settings.dtype))
        after = held_out.measure(policy)
    rewards: Record = {}
    for name, old in before.items():
        mean, low, high = interval([new - then for new, then in zip(after[name], old, strict=True)])
        rewards[name] = {
            "before": statistics.fmean(old), "after": statistics.fmean(after[name]),
            "difference": mean, "low": low, "high": high,
        }  # fmt: skip
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
    with launched(ParallelConfig()) as topology:
        held_out = HeldOut(settings, inputs, slices, members, topology)
        # By the same numbers for all seeds, so that they are compared with one beginning.
        before = held_out.measure(load_model(inputs.generator, topology, platform.resolve_dtype(settings.dtype)))
        for seed in seeds:
            seeded = settings.model_copy(update={"seed": seed})
            record = tune_once(seeded, inputs, held_out, before, topology)
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
