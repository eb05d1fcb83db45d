"""Tuning from the first prompt to the last checkpoint: the parts of a run, its loop (in `run`) and what it leaves.

A step samples, scores, updates and logs; how a token is drawn is the sampler's, what a reward measures the scorer's. A
run lives in a directory: `metrics.jsonl` (kind `tune`, one record a step), `samples/metrics.jsonl` (kind `sample`),
`tensorboard/`, `checkpoints/`, and at the end `policy/`, with `adapter/` beside it where adapters were trained.
Started again on the same directory with the same arguments it goes on from the newest checkpoint and, on the
CPU, ends with the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synpro_engine.backend.spans import REFERENCE, SCORE
from synpro_engine.config import UserError
from synpro_engine.dist import Topology, say
from synpro_engine.model.lora import merge_adapters
from synpro_engine.model.model import Model
from synpro_engine.model.peft import export_adapters
from synpro_engine.reward.canary import Canary
from synpro_engine.reward.config import OVERLONG
from synpro_engine.rl.canary import CanaryWatch
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.critic import Critic
from synpro_engine.rl.held_out import HeldOut
from synpro_engine.rl.learner import Learner
from synpro_engine.rl.own_surrogate import load_surrogate
from synpro_engine.rl.rollouts import PromptSource, RewardScorer, RolloutWorker, check_shares
from synpro_engine.rl.run import TuningRun
from synpro_engine.rl.types import Prompt
from synpro_engine.sampler import Sampler, SamplingConfig
from synpro_engine.synth import Prompter, Slice
from synpro_engine.train.checkpoint import save_checkpoint
from synpro_engine.train.divergence import SkipGuard
from synpro_engine.train.engine import Engine
from synpro_engine.train.parking import NOTHING, Parking, Reading, stay

POLICY, ADAPTER = "policy", "adapter"


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """How tuning ended: steps done, mean reward of the first and the last step of this run (None if none was left)."""

    steps: int
    policy: Path
    first_reward: float | None
    last_reward: float | None


def tune(
    config: TuneConfig,
    *,
    policy: Model,
    reference_policy: Model | None,
    prompter: Prompter,
    slices: Sequence[Slice],
    scorer: RewardScorer,
    reward_weights: Mapping[str, float],
    directory: Path,
    seed: int,
    canary: Canary | None = None,
    held_out: Sequence[Slice] | None = None,
    reads: Reading = NOTHING,
    label: str = "tuning",
) -> TuneResult:
    """Train `policy` in place for `config.steps` steps; writes the tuned weights to `directory/policy`.

    policy and reference_policy: as `prepare_policy` makes them, both at the round's start. prompter: the operation,
    asked in the generator's tokens; slices whose prompts are too long are left out. scorer: rewards of candidates;
    reward_weights: their weights by name for this operation (those not named are not logged). canary: the judges among
    them, where `config.judge_canary` has them looked at. held_out: slices that never train, where `config.held_out` has
    the reward measured on them. reads: what the scorer reads, for `config.residency`. Collective over the whole job. On
    the CPU deterministic in its arguments; on a GPU sums of many threads come in any order (see `nucleus`), so runs
    part by rounding.

    Raises UserError for a layout that cannot share out the prompts or has pipeline stages, when no prompt fits, for a
    directory of a run with other settings, for bad rewards as `config.bad_reward` says, and where they left no group at
    all; JudgeFell, after a checkpoint, for a judge below its least value; DivergedError when the policy's numbers are
    no longer finite; Stopped, after a checkpoint, when the job is asked to stop.
    """
    assert (canary is not None) or not config.judge_canary.every, "judges that are looked at must be given"
    assert (held_out is not None) or not config.held_out.every, "slices that are held out must be given"
    assert (reference_policy is None) == (config.kl_beta == 0.0), "a KL term needs a reference policy, and only it does"
    topology, operation = policy.topology, prompter.operation
    check_shares(config, operation.name, topology)
    sampler = Sampler(policy, config.sampler, prompter.tokenizer.decode)
    longest = min(prompter.config.max_tokens, sampler.max_prompt_tokens)
    prompts = PromptSource(slices, prompter, config.prompts_per_step, seed, longest=longest)
    if prompts.left_out:
        say(topology, f"{label}: {prompts.left_out} of {len(slices)} slices make too long a prompt and are left out")
    _tell_of_little_room(prompts.prompts, sampler, config.sampling, label, topology)
    critic = Critic(policy, config, operation.name) if config.critic is not None else None
    engine = Engine(policy, config.optimizer, schedule=config.schedule)
    guard = SkipGuard(what=f"tuning {operation.name}", lr_key=f"tune.{operation.name}.optimizer.lr", config=config.skip)
    weights, vocab_limit = {**reward_weights, OVERLONG: 1.0}, prompter.tokenizer.vocab_size
    trained = [policy] if critic is None else [policy, critic.engine.model]
    parking = _parking(trained, reference_policy, reads) if config.residency == "parked" else None
    needs = stay if parking is None else parking.needs
    learner = Learner(config, engine, reference_policy, critic, vocab_limit, weights, needs)
    worker = RolloutWorker(sampler, scorer, reward_weights, prompter, config, topology, seed, needs)
    watch = measured = None
    if canary is not None and config.judge_canary.every:
        watch = CanaryWatch(
            config.judge_canary, canary, topology, operation=operation.name, steps=config.steps, seed=seed
        )
    if held_out is not None and config.held_out.every:
        measured = HeldOut(config, held_out, policy, scorer, reward_weights, prompter, longest=longest, needs=needs)
    identity = _identity(config, prompter, seed)
    run = TuningRun(config, engine, critic, learner, worker, guard, directory, identity, watch, measured, parking)
    with closing(run):
        rewards = run.go_on(prompts, label)
    if parking is not None:
        parking.end()
    # At the end, when it is certain: later steps may make up for a bad one, and earlier runs count too.
    if not run.rewarded:
        raise UserError(f"{label}: every group of all {config.steps} steps was dropped; nothing was learnt")
    guard.end()
    if critic is not None:
        critic.guard.end()
    _write(policy, config, directory, seed)
    return TuneResult(
        steps=config.steps,
        policy=directory / POLICY,
        first_reward=rewards[0] if rewards else None,
        last_reward=rewards[-1] if rewards else None,
    )


def _parking(trained: Sequence[Model], reference_policy: Model | None, reads: Reading) -> Parking:
    """What waits in the host's memory while a step's phase needs none of it; not what `trained` models hold."""
    reference = Reading(() if reference_policy is None else (reference_policy,))
    return Parking({SCORE: reads, REFERENCE: reference}, [p for model in trained for p in model.parameters()])


def _write(policy: Model, config: TuneConfig, directory: Path, seed: int) -> None:
    """The tuned weights, and the adapters that made them. Collective."""
    if config.lora is not None:
        export_adapters(policy, directory / ADAPTER)
        # Whoever draws from the weights, or exports them, needs to know nothing of adapters.
        merge_adapters(policy)
    # Weights alone: generation needs no moments, which are twice their size in fp32.
    save_checkpoint(directory / POLICY, policy, {"step": config.steps}, seed=seed)


def _tell_of_little_room(
    prompts: Sequence[Prompt], sampler: Sampler, sampling: SamplingConfig, label: str, topology: Topology
) -> None:
    """Say where the context ends completions before the settings do: they are judged as texts that were cut off."""
    lengths = [len(prompt.token_ids) for prompt in prompts]
    short = [room for n in lengths if (room := sampler.most_tokens(n, sampling)) < sampling.most_tokens(n)]
    if short:
        say(
            topology,
            f"{label}: {len(short)} of {len(prompts)} prompts leave fewer than `sampling.max_new_tokens`"
            f" ({sampling.max_new_tokens}) tokens of the context, the longest of them {min(short)}; completions are cut"
            " off there",
        )


def _identity(config: TuneConfig, prompter: Prompter, seed: int) -> dict[str, Any]:
    """What decides a run's numbers: a checkpoint that was made with others is refused, not gone on from."""
    surrogate = load_surrogate(config, f"tune.{prompter.operation.name}.surrogate")
    about = {"prompt_version": prompter.operation.prompt_version, "surrogate_sha256": surrogate}
    return {**config.model_dump(mode="json"), "prompt": prompter.config.model_dump(mode="json"), "seed": seed, **about}
