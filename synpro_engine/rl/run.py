"""The loop of one tuning and its files: sample, score, update and log; measure, save, and go on after a kill."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from synpro_engine.backend.profiling import StepProfiler
from synpro_engine.backend.spans import ROLLOUT, SCORE, TRAIN, span
from synpro_engine.config import UserError, first_difference
from synpro_engine.dist import Stopped, gather_objects, on_main, progress, say
from synpro_engine.rl.canary import CanaryWatch, JudgeFell
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.critic import Critic, critic_values
from synpro_engine.rl.held_out import KIND, HeldOut
from synpro_engine.rl.learner import Learner
from synpro_engine.rl.record import rollout_values, sample_values, update_values
from synpro_engine.rl.rollouts import PromptSource, RolloutWorker
from synpro_engine.rl.types import Prompt, Rollout
from synpro_engine.sampler import Completion
from synpro_engine.train.checkpoint import checkpoint_extra, load_checkpoint, save_checkpoint
from synpro_engine.train.checkpoint_directory import CHECKPOINTS, newest_checkpoint, prune_checkpoints, step_path
from synpro_engine.train.divergence import DivergedError, SkipGuard
from synpro_engine.train.engine import Engine
from synpro_engine.train.metrics import MetricsLog, Value
from synpro_engine.train.parking import Parking

SAMPLES = "samples"
# Settings that may change between a kill and its resumption without changing what is computed.
_FREE = {"bad_reward", *TuneConfig.EXECUTION}


class TuningRun:
    """One run's loop, over its engine, learner, worker and files."""

    def __init__(
        self, config: TuneConfig, engine: Engine, critic: Critic | None, learner: Learner, worker: RolloutWorker,
        guard: SkipGuard, directory: Path, identity: dict[str, Any], watch: CanaryWatch | None,
        held_out: HeldOut | None, parking: Parking | None = None,
    ) -> None:  # fmt: skip
        self._parking = parking
        self._config, self._engine, self._critic, self._learner = config, engine, critic, learner
        self._worker, self._guard, self._directory, self._identity = worker, guard, directory, identity
        self._topology, self._watch, self._held_out = engine.model.topology, watch, held_out
        self._logs: list[MetricsLog] = []
        # What was measured before training is kept for who measures again, also by a run that does not.
        self._held_out_before: Mapping[str, Any] | None = None
        self.asked_to_stop = self.rewarded = False
        """Whether the job was asked to stop; whether a group of any step, before a resumption too, was learnt from."""

    def go_on(self, prompts: PromptSource, label: str) -> list[float]:
        """All steps that are left; the mean rewards of those that had any. Raises what `tune` does."""
        done, steps, rewards = self.resume(), self._config.steps, list[float]()
        profiler = StepProfiler(self._directory, self._topology.rank, self._topology.device)
        with closing(profiler), progress(steps, label, "step", self._topology, done) as bar:
            if done == 0:
                self._measure(done)
            for step in range(done, steps):
                try:
                    with profiler.step(step + 1):
                        values = self.step(prompts, step)
                except JudgeFell:
                    # Its updates are not made: who goes on from here, with another judge or setting, loses nothing.
                    self.save_before(step)
                    raise
                rewards += [values["reward"]] if math.isfinite(values["reward"]) else []
                kl = {"kl": f"{values['kl']:.4f}"} if math.isfinite(values["kl"]) else {}
                bar.set_postfix({"reward": f"{values['reward']:.3f}", **kl}, refresh=False)
                bar.update()
                # Ahead of the checkpoint, for who goes on from that measures what comes behind it.
                self._measure(step + 1)
                # Ahead of the stop, which says that its step is saved.
                self.save_if_due(step + 1, stop=self.asked_to_stop)
                if self.asked_to_stop and step + 1 < steps:
                    raise Stopped(f"{self._directory}: stopped after step {step + 1} of {steps}, which is saved")
        return rewards

    def resume(self) -> int:
        """Load the newest checkpoint, if any, and open the logs behind it; steps already done.

        UserError when it was written with other settings.
        """
        newest = newest_checkpoint(self._directory / CHECKPOINTS, self._topology)
        done, at = 0, None
        if newest is not None:
            # Ahead of its tensors, which other settings may have given other shapes.
            extra = on_main(self._topology, lambda: checkpoint_extra(newest))
            # A key that is younger than the checkpoint counts as its default there.
            difference = first_difference(self._config.completed(extra["run"]), self._identity, _FREE)
            if difference is not None:
                raise UserError(
                    f"{newest}: belongs to a run of other settings: {difference}; use a directory of its own"
                )
            # With the optimizer's moments: a run that goes on ends with the weights of one that was never killed.
            load_checkpoint(newest, self._engine.model, self._engine)
            done = at = int(extra["step"])
            if "guard" not in extra:
                raise UserError(f"{newest}: was written by an older version, without a count of skipped steps")
            self._guard.load_state_dict(extra["guard"])
            if self._critic is not None:
                self._critic.resume(self._directory, done)
            # Older checkpoints do not say; True ends no run that would have ended well.
            self.rewarded = bool(extra.get("rewarded", True))
            self._held_out_before = extra.get("held_out")
            if self._held_out is not None:
                self._held_out.load_state_dict(self._held_out_before)
        main = self._topology.is_main
        self._logs = [
            MetricsLog(self._directory if main else None, resume_step=at),
            MetricsLog(self._directory / SAMPLES if main else None, resume_step=at, tensorboard=False),
        ]
        return done

    def step(self, prompts: PromptSource, step: int) -> dict[str, float]:
        """One step: sample with the present weights, score, compare, update, log. Returns the step's numbers."""
        clock = [time.perf_counter()]
        chosen = prompts.at(step)
        places = self._worker.share(chosen)
        with span(ROLLOUT):
            sampled = self._sample(chosen, step, places)
        clock.append(time.perf_counter())
        with span(SCORE):
            rollouts, asked = self._worker.score(chosen, places, sampled)
            refilled, asked = self._refill(prompts, chosen, rollouts, step, asked)
            if self._watch is not None and self._watch.is_due(step):
                self._look(self._watch, prompts, rollouts, step)
        clock.append(time.perf_counter())
        with span(TRAIN):
            rollouts, updates, taught = self._learner.learn(rollouts, step)
        self.asked_to_stop = [*taught, *updates][-1].stop
        clock.append(time.perf_counter())

        values: dict[str, Value] = dict(rollout_values(rollouts, self._topology.dp))
        self.rewarded |= math.isfinite(float(values["reward"]))  # pyright: ignore[reportArgumentType]
        values |= update_values(updates, self._engine.lr)
        if taught:
            values |= critic_values(taught)
        if self._config.refills:
            values["refilled_groups"] = refilled
        values |= self._worker.guesses()
        values |= {f"judge/{name}": count for name, count in asked.items()}
        for name, start, end in zip((ROLLOUT, SCORE, TRAIN), clock, clock[1:], strict=False):
            values[f"seconds/{name}"] = end - start
        if self._parking is not None:
            values["moved_bytes"], values["moved_seconds"] = self._parking.take_counts()
        self._logs[0].write("tune", step + 1, values)
        wanted = min(self._config.log_samples, len(rollouts))
        for at in range(wanted):  # spread over the prompts
            self._logs[1].write("sample", step + 1, sample_values(rollouts[at * len(rollouts) // wanted]))
        if values["skipped"]:
            # Of the rollouts: which groups other ranks replaced `chosen` does not say.
            mine = [rollout.prompt.key for rollout in rollouts if rollout.member == 0]
            sources = [key for part in gather_objects(self._topology.dp, mine) for key in part]
            self._logs[0].write("skipped", step + 1, {"documents": {"sources": sources}})
        # Behind the logs, so that the step at which the guard gives up is on record.
        critic_guard = self._guard if self._critic is None else self._critic.guard
        for guard, results in ((critic_guard, taught), (self._guard, updates)):
            for result in results:
                guard.add(result.step, result.loss, result.grad_norm, result.lr, skipped=result.skipped)
        return {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}

    def _look(self, watch: CanaryWatch, prompts: PromptSource, rollouts: Sequence[Rollout], step: int) -> None:
        """Look at the judges, and heed what is found. JudgeFell, on every rank."""
        others = prompts.at(step + 1)
        share = self._worker.share(others)
        values = watch.look(rollouts, share, len(others), self._config.group_size, others, step)
        self._logs[0].write("canary", step + 1, values)
        if told := watch.fallen(values, step):
            if watch.stops:
                raise JudgeFell(f"{self._guard.what}: {told}; `below: warn` goes on all the same")
            say(self._topology, f"{self._guard.what}: {told}")

    def _sample(
        self, prompts: Sequence[Prompt], step: int, places: Sequence[int], attempt: int = 0
    ) -> list[list[Completion]]:
        with self._telling_divergence(step):
            return self._worker.sample(prompts, step, places, attempt)

    @contextmanager
    def _telling_divergence(self, step: int) -> Iterator[None]:
        try:
            yield
        except FloatingPointError as error:
            lr = self._engine.lr
            raise DivergedError(
                f"{self._guard.what} diverged before step {step + 1}: {error}; lower `{self._guard.lr_key}` ({lr:.3g})"
            ) from error

    def _measure(self, done: int) -> None:
        """Measure the policy as it is after so many steps on what is held out, where that is due. Collective."""
        if self._held_out is not None and done in self._held_out.due:
            with self._telling_divergence(done):
                values = self._held_out.measure(done)
            self._logs[0].write(KIND, done, values)

    def _refill(
        self, prompts: PromptSource, chosen: list[Prompt], rollouts: list[Rollout], step: int, asked: dict[str, int]
    ) -> tuple[int, dict[str, int]]:
        """Replace groups without a signal, in place; the job's number of them, and what judges were asked in all."""
        replaced, size, counts = 0, self._config.group_size, Counter(asked)
        for attempt in range(1, self._config.refills + 1):
            silent = self._worker.silent(rollouts)
            wanted = sum(gather_objects(self._topology.dp, len(silent)))
            if not wanted:
                break
            replaced += wanted
            first = self._worker.share(chosen).start
            places = [first + group for group in silent]
            for place in places:
                chosen[place] = prompts.instead(step, attempt, place)
            # A rank without any comes along: rewards are scored together.
            sampled = self._sample(chosen, step, places, attempt)
            fresh, more = self._worker.score(chosen, places, sampled)
            counts.update(more)
            for at, group in enumerate(silent):
                rollouts[group * size : (group + 1) * size] = fresh[at * size : (at + 1) * size]
        return replaced, dict(counts)

    def save_before(self, step: int) -> None:
        """Write the checkpoint that a step begins with, unless it is there or nothing was done. Collective."""
        every = self._config.checkpoint_every
        if step and (every == 0 or step % every):
            self.save_if_due(step, stop=True)

    def save_if_due(self, done: int, *, stop: bool) -> None:
        """Write a checkpoint after the last step, every `checkpoint_every` steps, and for a stop. Collective."""
        every, last = self._config.checkpoint_every, done == self._config.steps
        if not (last or stop) and (every == 0 or done % every):
            return
        extra = {"step": done, "run": self._identity, "guard": self._guard.state_dict(), "rewarded": self.rewarded}
        extra["held_out"] = self._held_out_before if self._held_out is None else self._held_out.state_dict()
        if self._critic is not None:
            self._critic.save(self._directory, done, self._config.keep_checkpoints)
        save_checkpoint(step_path(self._directory / CHECKPOINTS, done), self._engine, extra)
        # Behind the save: a kill between the two leaves a checkpoint too many, never one too few.
        prune_checkpoints(self._directory / CHECKPOINTS, self._config.keep_checkpoints, self._topology)

    def close(self) -> None:
        """Close the logs."""
        for log in self._logs:
            log.close()
