"""One pretraining run: its parts, what it must remember between checkpoints, and what can be done with it.

Begin or resume, step, evaluate, save, end; `trainer` calls these in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from synpro_engine.backend import platform
from synpro_engine.backend.spans import CHECKPOINT, DATA, LOG, span
from synpro_engine.config import UserError, first_difference
from synpro_engine.data import Batch, TokenLoader
from synpro_engine.data.choices import QuestionSet
from synpro_engine.dist import Stopped, Topology, say, sum_over
from synpro_engine.model.dropout import Dropout, dropouts
from synpro_engine.model.model import Model
from synpro_engine.model.shared_rows import documents_apart
from synpro_engine.train.checkpoint import load_checkpoint
from synpro_engine.train.config import TrainConfig, WeightsOf
from synpro_engine.train.divergence import DivergedError, PretrainGuard
from synpro_engine.train.engine import Accept, Engine, StepResult
from synpro_engine.train.losses import DistillationLoss, LanguageModelLoss, count_labels
from synpro_engine.train.metrics import MetricsLog, Throughput, flops_per_token
from synpro_engine.train.run_checkpoints import RunCheckpoints
from synpro_engine.train.run_evaluations import RunEvaluations
from synpro_engine.train.run_state import PretrainResult, RunProgress
from synpro_engine.train.spikes import SpikeGuard
from synpro_engine.train.step_log import StepLog
from synpro_engine.train.stragglers import Stragglers
from synpro_engine.train.trackers import tracked
from synpro_engine.train.watcher import Evaluated, Watcher, Watching

# Settings that a resumed run may change without becoming another run, beside those of execution.
_FREE = {"max_steps", "eval_every", "tasks_every"}


class PretrainRun:
    """One run in its directory. All methods are collective."""

    def __init__(
        self,
        model: Model,
        config: TrainConfig,
        loader: TokenLoader,
        directory: Path,
        held_out: Mapping[str, Iterable[Batch]],
        mixed: Mapping[str, Mapping[str, float]],
        seed: int | None,
        start: Path | None,
        watcher: Watcher | None = None,
        evaluated: Evaluated | None = None,
        teachers: Sequence[Model] = (),
        start_weights: WeightsOf = "raw",
        questions: Mapping[str, QuestionSet] | None = None,
        inputs: str | None = None,
    ) -> None:
        assert loader.global_batch == config.global_batch, (loader.global_batch, config.global_batch)
        # Found now and not at the first evaluation, which may be hours away.
        if config.plateau is not None and "reference" not in {*held_out, *mixed}:
            raise UserError("setting `plateau`: needs a held-out set named `reference`")
        token, rows = config.dropout.mask_token, model.config.vocab_size
        if config.dropout.tokens and token is not None and token >= rows:
            raise UserError(f"setting `dropout.mask_token`: {token} is none of the model's {rows} tokens")
        self.model, self.config, self.loader = model, config, loader
        self.topology, self.directory, self.start, self.seed = model.topology, directory, start, seed
        self.start_weights: WeightsOf = start_weights
        self.inputs = inputs
        self.engine = Engine(
            model,
            config.optimizer,
            schedule=config.schedule,
            overlap_gradients=config.overlap_gradients,
            overlap_weights=config.overlap_weights,
            averages=config.averages,
            given=config.given,
        )
        _tell_what_gains_nothing(config, self.topology)
        self.loss_fn = LanguageModelLoss(config.z_loss, output_layer=config.output_layer)
        self.watcher = watcher
        if config.distill is not None:
            self.loss_fn = DistillationLoss(config.z_loss, config.distill, teachers)
        self.guard = PretrainGuard(config, model.config.vocab_size)
        self.spikes = None if config.spike is None else SpikeGuard(config.spike)
        self.stragglers = None
        if config.stragglers is not None and self.topology.world_size > 1:
            self.stragglers = Stragglers(self.topology, config.stragglers)
        self.state = RunProgress()
        self.hang = model.topology.watch.hang
        self.hang.directory = self.hang.directory or directory / "stacks"
        # At the length that is trained on, which may be less than the model's: attention's part grows with it.
        flops = flops_per_token(model.config, loader.seq_len)
        # Teachers read each token too, forward alone: a third of what training on it takes.
        flops += sum(flops_per_token(teacher.config, loader.seq_len) for teacher in teachers) / 3
        self.throughput = Throughput(flops, platform.peak_flops(), model.topology.world_size)
        self.checkpoints = RunCheckpoints(directory, config, model.topology)
        self.evaluations = RunEvaluations(
            self.engine, config, held_out=held_out, mixed=mixed, questions=questions or {}, seq_len=loader.seq_len,
            guard=self.guard, throughput=self.throughput, evaluated=evaluated,
        )  # fmt: skip
        self._owed = False

    def begin(self) -> bool:
        """Load what there is to go on from; whether this directory already held a part of the run."""
        # The run's own checkpoint goes before `start`: started again on the same arguments it
        # must go on, and not begin anew.
        newest = self.checkpoints.find()
        if newest is not None:
            try:
                self._resume(newest)
            finally:
                self.checkpoints.leave()
            return True
        self.checkpoints.begin()
        if self.start is not None:
            # With the optimizer's moments and the data's position: a fresh AdamW would make a bump in the loss
            # right where the arms are compared.
            extra = load_checkpoint(self.start, self.model, self.engine, weights=self.start_weights)
            if "data" in extra:
                self.loader.load_state_dict(extra["data"])
            self.state.first_step = self.engine.step_index
        return False

    def _resume(self, newest: Path) -> None:
        extra = load_checkpoint(newest, self.model, self.engine, weights="raw")
        # Of the settings only; what lies in the loader (seed, length, corpora) is compared by its own state.
        # A key that is younger than the checkpoint counts as its default there.
        stored, given = self.config.completed(extra["config"]), self.config.model_dump(mode="json")
        compared = self.config.without_execution
        difference = first_difference(compared(stored), compared(given), _FREE)
        if difference is not None:
            raise UserError(f"{newest}: belongs to a run of other settings: {difference}")
        # Of before they were noted, checkpoints say nothing of them.
        if self.inputs is not None and extra.get("inputs") not in (None, self.inputs):
            place = self.config.checkpoint_copy or newest.parent
            raise UserError(
                f"{place}: {newest.name} is of a run that was made from other text, weights or settings; empty it, or"
                " give `pretrain.checkpoint_copy` another place"
            )
        self.loader.load_state_dict(extra["data"])
        self.state = RunProgress(**extra["progress"])
        self.evaluations.load_state_dict(extra["plateau"], stored["eval_every"], where=self.directory)
        if "guard" not in extra:
            raise UserError(f"{newest}: was written by an older version, without a count of skipped steps; begin anew")
        self.guard.load_state_dict(extra["guard"])
        if self.spikes is not None and extra.get("spikes") is not None:
            self.spikes.load_state_dict(extra["spikes"])
        self.checkpoints.take_up(newest)
        say(self.topology, f"{self.directory}: going on from step {self.engine.step_index}")

    def open_log(self, resumed: bool) -> None:
        """Metrics are written by rank 0 alone; what lies beyond the resumed step is dropped."""
        resume_step = self.engine.step_index if resumed else None
        self.log = MetricsLog(
            self.directory if self.topology.is_main else None,
            resume_step=resume_step,
            tensorboard=self.config.tensorboard,
            tracked=tracked(self.config, self.model.config, self.directory, self.topology),
        )
        self.evaluations.begin(self.log)
        self.steps = StepLog(self.log, self.engine, self.loader, self.throughput, self.topology)
        if self.watcher is not None:
            self.watcher.begin(self.engine, self.loader, self.log, resume_step)

    @property
    def steps_here(self) -> int:
        """Steps of this run so far."""
        return self.engine.step_index - self.state.first_step

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.state.finished(self.engine.step_index, self.config.max_steps)

    @property
    def to_evaluate(self) -> bool:
        """Whether held-out losses are due after this step: as often as is asked for, and where a budget is spent."""
        return self.evaluations.spent(self.steps_here, self.state.tokens) or self.due(self.config.eval_every)

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now."""
        return every > 0 and self.steps_here % every == 0

    def step(self) -> StepResult:
        """One optimizer step over the next global batch."""
        # Kept for the case that the step is skipped: the documents are looked up again from
        # here, and cost nothing otherwise.
        position, number = self.loader.state_dict(), self.engine.step_index + 1
        spike: str | None = None
        action = "tell" if self.config.spike is None else self.config.spike.action

        def accept(loss: float, grad_norm: float) -> bool:
            nonlocal spike
            spike = None if self.spikes is None else self.spikes.fault(loss, grad_norm)
            return spike is None or action == "tell"

        try:
            with nullcontext() if self.stragglers is None else self.stragglers.look(number):
                result, labels = self._train(number, accept)
        finally:  # a sweep goes on behind a trial that failed
            self.hang.rest()
        self.hang.stepped = True
        # Masked labels included: the budget and the comparison of arms count what the model reads.
        tokens = self.loader.global_batch * self.loader.seq_len
        self.state.tokens += tokens
        self.throughput.add(tokens)
        with span(LOG):
            if self.due(self.config.log_every) or result.skipped:
                slowest = None if self.stragglers is None else self.stragglers.take()
                self.steps.write(result, labels, self.state.tokens, slowest)
            if result.skipped or spike is not None:
                self.steps.write_wrong(result, spike, position)
            elif self.due(self.config.layer_norms_every):
                self.steps.write_layers(result)
        # Last, for they may raise: the step and its documents stand in the log by then.
        if spike is not None and action == "stop":
            raise DivergedError(
                f"training stopped at step {result.step}, before its update: {spike};"
                " `pretrain.spike.action=skip` goes on without it"
            )
        # Without labels the loss is a 0 that says nothing of training.
        if self.spikes is not None and labels:
            self.spikes.add(result.loss, result.grad_norm)
        self.guard.add_step(
            result.step, result.loss, result.grad_norm, result.lr, skipped=result.skipped, labelled=labels > 0
        )
        return result

    def _train(self, number: int, accept: Accept) -> tuple[StepResult, int]:
        """Read the batch and make the step; its result, and the labels of the whole job."""
        self.hang.begin(f"step {number}: reading its batch")
        with span(DATA):
            batch = self.loader.next_batch()
            microbatches = batch.split(self.config.micro_batch, equal=self.topology.pp.size > 1)
        self.hang.begin(f"step {number}")
        # Of the whole job, for masked windows are spread unevenly: dividing by each rank's own count would weigh tokens
        # differently from layout to layout.
        labels = count_labels(batch.labels_BS)
        if self.topology.dp.size > 1:  # alone it stays on the host, which then waits for no device
            labels = sum_over(self.topology.dp, labels.to(self.topology.device))
        labels = int(labels)
        # A batch whose labels are all masked has a loss of 0 and must not divide by 0.
        denominator = max(1, labels)
        with ExitStack() as held:
            watching = Watching(held.enter_context(self.loss_fn.over(microbatches)))
            if self.watcher is not None:
                watching = held.enter_context(self.watcher.watching(microbatches, watching.loss_fn, denominator))
            result = self.engine.step(
                microbatches, watching.loss_fn, denominator=denominator, accept=accept,
                rows_of=lambda batch: documents_apart(batch, self.topology.device),
                dropouts=self._dropouts(microbatches),
            )  # fmt: skip
            watching.skipped = result.skipped
            return result, labels

    def _dropouts(self, microbatches: Sequence[Batch]) -> list[Dropout] | None:
        """What the next step drops of its micro-batches."""
        return dropouts(
            self.config.dropout,
            [batch.tokens_BS.size(0) for batch in microbatches],
            first_row=self.loader.first_row,
            seed=self.loader.seed,
            step=self.engine.step_index,
            layers=self.model.config.layers,
            device=self.topology.device,
        )

    def save_if_due(self, *, last: bool = False) -> None:
        """Write a checkpoint where one is due, or was while training went wrong; at a run's end that is for `end`.

        last: as of `save`.
        """
        self._owed = self._owed or self.due(self.config.checkpoint_every)
        # Not while training goes wrong: older checkpoints are pruned, and none to go back to would be left.
        if self._owed and not self.finished and self.guard.sound:
            self.save(last=last)

    def save(self, *, prune: bool = True, last: bool = False) -> None:
        """Write a checkpoint from which this run, or a later one, goes on; see `RunCheckpoints.save`."""
        self._owed = False
        extra = {
            "step": self.engine.step_index,
            "config": self.config.model_dump(mode="json"),
            "inputs": self.inputs,
            "data": self.loader.state_dict(),
            "progress": asdict(self.state),
            "plateau": self.evaluations.state_dict(),
            "guard": self.guard.state_dict(),
            "spikes": None if self.spikes is None else self.spikes.state_dict(),
        }
        with self.throughput.pause(), span(CHECKPOINT):
            self.checkpoints.save(
                self.engine, extra, first_step=self.state.first_step, start=self.start, seed=self.seed,
                prune=prune, last=last,
            )  # fmt: skip
            if self.watcher is not None:
                self.watcher.saved()

    def stop(self) -> NoReturn:
        """Save, as the job was asked to stop; raises Stopped. While losses are out of bounds nothing is saved."""
        step = self.engine.step_index
        # A skipped step is saved: it changed nothing, and what was trained before it would be lost.
        if not self.guard.in_bounds:
            raise Stopped(f"{self.directory}: stopped after step {step}; it goes on from the checkpoint before")
        if self.checkpoints.newest != self.checkpoints.at(step):
            self.save(prune=self.guard.sound, last=True)
        self.checkpoints.saver.finish()
        # Behind the checkpoint: what a watcher keeps is for this step, and without a
        # checkpoint of it nobody would read it.
        if self.watcher is not None:
            self.watcher.stop()
        raise Stopped(f"{self.directory}: stopped after step {step}, which is saved")

    def end(self) -> PretrainResult:
        """Evaluate and save what the last step left, unless a finished run was only looked at again."""
        state, step = self.state, self.engine.step_index
        if not state.stopped:
            state.reason = f"all {self.config.max_steps} steps done"
        path = self.checkpoints.at(step)
        # A finished run that is started again has its last checkpoint already, and writes nothing.
        if self.checkpoints.newest != path:
            if state.evaluated_at != step:
                self.evaluations.measure(state, judge=False)
            if state.asked_at != step:
                self.evaluations.ask(state)
            self.save(last=True)
        self.checkpoints.saver.finish()
        return PretrainResult(
            step=step,
            tokens=state.tokens,
            losses=dict(state.losses),
            plateau=state.plateau,
            reason=state.reason,
            skipped=self.guard.skips.in_all,
            checkpoint=path,
        )


def _tell_what_gains_nothing(config: TrainConfig, topology: Topology) -> None:
    """Settings that are right here, and bring nothing."""
    if config.offload_layers and topology.device.type == "cpu":
        say(topology, "`pretrain.offload_layers`: here the device's memory is the host's, and nothing is gained")
    if config.overlap_weights and topology.replicas.size == 1:
        say(topology, "`pretrain.overlap_weights`: here is one replica, which gathers nothing, and nothing is gained")
