"""The stage that tunes an operation's generator."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path

from synpro_engine.backend import platform
from synpro_engine.config import atomic_write_text, json_text, read_json, remove_directory
from synpro_engine.cycle.run_layout import documents_path
from synpro_engine.cycle.settings import TuneSettings
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.cycle.steps.judging import tell_judged
from synpro_engine.cycle.steps.rewards import Inputs, build_rewards, round_seed
from synpro_engine.cycle.steps.weights import load_model
from synpro_engine.data import Split, Tokenizer, read_documents
from synpro_engine.data.encoding import token_counter
from synpro_engine.dist import Topology, on_main, say
from synpro_engine.reward.canary import Canary
from synpro_engine.rl.held_out import KIND
from synpro_engine.rl.policy import prepare_policy
from synpro_engine.rl.trainer import TuneResult, tune
from synpro_engine.synth import Operation, Prompter, Slice, SliceConfig, choose_slices, operation_named
from synpro_engine.train.checkpoint_directory import CHECKPOINTS
from synpro_engine.train.metrics import METRICS, read_metrics

_CHOSEN = "slices"
"""Of a tuning that is under way: the slices that it works on, by split."""
_JUDGE = "judge/"
"""Begins the names of counts of judges in a tuning's metrics."""


def tune_stage(into: Path, settings: TuneSettings, inputs: Inputs, topology: Topology) -> None:
    """Tune one operation's generator with GRPO; the tuned weights end in `policy`.

    It practises on the slices that generation will see.
    """
    operation, config, seed = operation_named(settings.operation), settings.tune, round_seed(settings)
    tokenizer = open_tokenizer(inputs.base, topology)

    def slices(split: Split, most: int, seed: int) -> list[Slice]:
        wanted = settings.slices.model_copy(update={"max_slices": most})
        kept, documents = into / _CHOSEN / f"{split}.json", documents_path(inputs.tokens, split)
        return chosen_to_tune(kept, documents, wanted, seed, tokenizer, operation, topology)

    policy = load_model(inputs.generator, topology, platform.resolve_dtype(settings.dtype))
    # `load_model` freezes what it loads.
    for parameter in policy.parameters():
        parameter.requires_grad_(True)
    # Before the first update, since it is a copy of the policy as it is now.
    reference_policy = prepare_policy(policy, config)
    scorer, reads = build_rewards(settings, inputs, topology)
    # Twice what it can ask for, of which some may be too long: a corpus has more slices than memory holds prompts.
    most = min(settings.slices.max_slices or sys.maxsize, 2 * config.steps * config.prompts_per_step)
    result = tune(
        config,
        policy=policy,
        reference_policy=reference_policy,
        prompter=Prompter(operation, tokenizer, settings.prompt),
        slices=slices("train", most, seed),
        scorer=scorer,
        reads=reads,
        canary=Canary(scorer, tokenizer.encode) if config.judge_canary.every else None,
        # The same ones in each round and for each seed, so that their curves can be compared.
        held_out=slices("validation", 2 * config.held_out.slices, seed=0) if config.held_out.every else None,
        reward_weights=settings.reward.weights(operation.name),
        directory=into,
        seed=seed,
        label=f"tune {operation.name}",
    )
    _tell_tuned(into, operation.name, result, topology)
    asked = on_main(topology, lambda: _asked_while_tuning(into))
    tell_judged(f"tuned {operation.name}", settings.own_reward, asked, topology)
    # The policy is whole; what was kept to resume from (optimizer state, a second copy of the weights) is not needed.
    on_main(topology, lambda: [remove_directory(into / name) for name in (CHECKPOINTS, _CHOSEN)])


def chosen_to_tune(
    kept: Path,
    documents: Path,
    config: SliceConfig,
    seed: int,
    tokenizer: Tokenizer,
    operation: Operation,
    topology: Topology,
) -> list[Slice]:
    """The slices of these documents that a generator is tuned or measured on, as rank 0 reads them. Collective.

    kept: a file of the stage, for to choose by tokens takes hours of a large corpus. The stage's inputs are the same
    ones at each start; how many slices are held out may be another number.
    """
    asked = {"slices": config.recorded(), "seed": seed}

    def chosen() -> list[Slice]:
        stored = read_json(kept) if kept.exists() else {}
        if stored.get("asked") == asked:
            return [Slice(**fields) for fields in stored["chosen"]]
        read = partial(read_documents, str(documents))
        found = list(choose_slices(read, config, seed, token_counter(tokenizer), cut=operation.cut))
        kept.parent.mkdir(exist_ok=True)
        atomic_write_text(kept, json_text({"asked": asked, "chosen": list(map(asdict, found))}))
        return found

    # On one rank: the corpus is read twice for it, by as many ranks as there are otherwise.
    return on_main(topology, chosen, label=f"slices for {operation.name}")


def _tell_tuned(directory: Path, operation: str, result: TuneResult, topology: Topology) -> None:
    """Say what became of the reward: on the slices that were held out, where there are any, else in training's steps.

    Of the former the measurement before training is the first, in a resumed run too. Collective.
    """
    records = on_main(topology, lambda: [r for r in read_metrics(directory / METRICS) if r["kind"] == KIND])
    ends = [r for r in records if r["step"] in (0, result.steps) and r["reward"] is not None]
    first, last, told = result.first_reward, result.last_reward, ""
    # Without a difference the first may be of other slices.
    if len(ends) == 2 and ends[1].get("difference") is not None:
        first, last, told = ends[0]["reward"], ends[1]["reward"], f" on {ends[1]['slices']} held-out slices"
        if ends[1].get("low") is not None:
            told += " ({difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})".format(**ends[1])
    if first is not None and last is not None:  # a step was left to do
        say(topology, f"tuned {operation}: mean reward {first:.3f} at first, {last:.3f} at last{told}")


def _asked_while_tuning(directory: Path) -> dict[str, int]:
    """What judges were asked in all steps, those before a resumption too."""
    asked: Counter[str] = Counter()
    for record in read_metrics(directory / METRICS):
        asked.update({key.removeprefix(_JUDGE): n for key, n in record.items() if key.startswith(_JUDGE)})
    return dict(asked)
