"""One pretraining run: its parts, what it must remember between checkpoints, and what can be done with it.

Begin or resume, step, evaluate, save, end; `trainer` calls these in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from math import nan
from pathlib import Path
from typing import Any, NoReturn, Protocol

from synpro_engine.backend import platform
from synpro_engine.backend.spans import CHECKPOINT, DATA, EVALUATE, LOG, span
from synpro_engine.config import UserError, first_difference, remove_directory
from synpro_engine.data import Batch, TokenLoader
from synpro_engine.dist import Stopped, broadcast_object, on_main, say, sum_over
from synpro_engine.model.dropout import Dropout, dropouts
from synpro_engine.model.model import Model
from synpro_engine.model.shared_rows import documents_apart
from synpro_engine.train.checkpoint import load_checkpoint
from synpro_engine.train.checkpoint_directory import (
    CHECKPOINTS,
    bring_back,
    copy_checkpoint,
    copy_record,
    newest_sound_checkpoint,
    remove_older,
    step_of,
    step_path,
)
from synpro_engine.train.checkpoint_saver import CheckpointSaver
from synpro_engine.train.config import TrainConfig, WeightsOf
from synpro_engine.train.divergence import DivergedError, PretrainGuard
from synpro_engine.train.engine import Accept, Engine, LossFn, StepResult
from synpro_engine.train.evaluation import held_out_loss
from synpro_engine.train.layer_norms import gradient_norms, told
from synpro_engine.train.losses import DistillationLoss, LanguageModelLoss, count_labels
from synpro_engine.train.metrics import MetricsLog, Throughput, flops_per_token
from synpro_engine.train.plateau import PlateauDecision, PlateauDetector
from synpro_engine.train.spikes import SpikeGuard
from synpro_engine.train.stragglers import Stragglers
from synpro_engine.train.trackers import Tracked, require_trackers

# Settings that a resumed run may change without becoming another run.
_FREE = {"max_steps", "eval_every", *TrainConfig.EXECUTION}


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """How a run ended. `tokens` were trained on in this run; losses are nats per token at its end, by set.

    `plateau` is true only where the loss stopped improving, not where a limit of steps or tokens ended the run.
    `skipped`: steps that changed nothing, for loss or gradient was not finite, or a spike.
    """

    step: int
    tokens: int
    losses: dict[str, float]
    plateau: bool
    reason: str
    skipped: int
    checkpoint: Path


@dataclass(kw_only=True)
class RunProgress:
    """What a checkpoint must carry besides weights, optimizer and data position."""

    first_step: int = 0
    tokens: int = 0
    evaluated_at: int = -1
    losses: dict[str, float] = field(default_factory=dict)
    plateau: bool = False
    budget: bool = False  # the detector's limit of steps or tokens is reached
    reason: str = ""

    @property
    def stopped(self) -> bool:
        """Whether the detector ended the run."""
        return self.plateau or self.budget


class Watcher(Protocol):
    """Looks on while a run's steps are made, and must leave every one of them as it is. Collective."""

    def begin(self, engine: Engine, loader: TokenLoader, log: MetricsLog, resume_step: int | None) -> None:
        """Before the first step. resume_step: the step that a resumed run goes on from; None for a new run."""
        ...

    def stop(self) -> None:
        """The run is left after this step, a checkpoint is written; keep what goes on from there needs."""
        ...

    def watching(
        self, microbatches: Sequence[Batch], loss_fn: LossFn[Batch], denominator: int
    ) -> AbstractContextManager[LossFn[Batch]]:
        """Around one `Engine.step` with these arguments, which takes the loss function that is yielded."""
        ...


Evaluated = Callable[[int, Mapping[str, float], bool], None]
"""Is told of each evaluation that the run goes on from: the step, losses by held-out set, and whether it is the last.

Collective. What it raises, which every rank must, ends the run there.
"""


class PretrainRun:
    """One run in its directory. All methods are collective."""

    def __init__(
        self,
        model: Model,
        config: TrainConfig,
        loader: TokenLoader,
        directory: Path,
        held_out: Mapping[str, Sequence[Batch]],
        mixed: Mapping[str, Mapping[str, float]],
        seed: int | None,
        start: Path | None,
        watcher: Watcher | None = None,
        evaluated: Evaluated | None = None,
        teachers: Sequence[Model] = (),
        start_weights: WeightsOf = "raw",
    ) -> None:
        assert loader.global_batch == config.global_batch, (loader.global_batch, config.global_batch)
        # Found now and not at the first evaluation, which may be hours away.
        if config.plateau is not None and "reference" not in {*held_out, *mixed}:
            raise UserError("setting `plateau`: needs a held-out set named `reference`")
        token, rows = config.dropout.mask_token, model.config.vocab_size
        if config.dropout.tokens and token is not None and token >= rows:
            raise UserError(f"setting `dropout.mask_token`: {token} is none of the model's {rows} tokens")
        self.model, self.config, self.loader, self.held_out = model, config, loader, held_out
        self.mixed = mixed
        self.topology, self.directory, self.start, self.seed = model.topology, directory, start, seed
        self.start_weights: WeightsOf = start_weights
        self.engine = Engine(
            model,
            config.optimizer,
            schedule=config.schedule,
            overlap_gradients=config.overlap_gradients,
            averages=config.averages,
            given=config.given,
        )
        self.loss_fn = LanguageModelLoss(config.z_loss, output_layer=config.output_layer)
        self.watcher, self.evaluated = watcher, evaluated
        if config.distill is not None:
            self.loss_fn = DistillationLoss(config.z_loss, config.distill, teachers)
        self.detector = None if config.plateau is None else PlateauDetector(config.plateau)
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
        self.throughput = Throughput(flops, platform.peak_flops(), model.topology.world_size)
        self.copies = None if config.checkpoint_copy is None else Path(config.checkpoint_copy)
        self.saver = CheckpointSaver(model.topology, background=config.async_checkpoints)
        self.saved: Path | None = None
        """The newest checkpoint; the saver may still be writing it."""

    def begin(self) -> bool:
        """Load what there is to go on from; whether this directory already held a part of the run."""
        # The run's own checkpoint goes before `start`: started again on the same arguments it
        # must go on, and not begin anew.
        newest = newest_sound_checkpoint(self.directory / CHECKPOINTS, self.copies, self.topology)
        if newest is not None:
            self._resume(newest)
            saved, copies = self.saved, self.copies
            if saved is not None and copies is not None:  # a kill may have come before its copy
                self.saver.behind(lambda: copy_checkpoint(saved, copies))
            return True
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
        stored = self.config.completed(extra["config"])
        difference = first_difference(stored, self.config.model_dump(mode="json"), _FREE)
        if difference is not None:
            raise UserError(f"{newest}: belongs to a run of other settings: {difference}")
        self.loader.load_state_dict(extra["data"])
        self.state = RunProgress(**extra["progress"])
        if self.detector is not None:
            self.detector.load_state_dict(extra["plateau"])
        if "guard" not in extra:
            raise UserError(f"{newest}: was written by an older version, without a count of skipped steps; begin anew")
        self.guard.load_state_dict(extra["guard"])
        if self.spikes is not None and extra.get("spikes") is not None:
            self.spikes.load_state_dict(extra["spikes"])
        self.saved = step_path(self.directory / CHECKPOINTS, step_of(newest))
        if newest != self.saved:  # only now that it is known to be of this run
            on_main(self.topology, lambda: bring_back(newest, self.directory))
        say(self.topology, f"{self.directory}: going on from step {self.engine.step_index}")

    def open_log(self, resumed: bool) -> None:
        """Metrics are written by rank 0 alone; what lies beyond the resumed step is dropped."""
        resume_step = self.engine.step_index if resumed else None
        self.log = MetricsLog(
            self.directory if self.topology.is_main else None,
            resume_step=resume_step,
            tensorboard=self.config.tensorboard,
            tracked=self._tracked(),
        )
        if self.watcher is not None:
            self.watcher.begin(self.engine, self.loader, self.log, resume_step)

    def _tracked(self) -> Tracked | None:
        """Who else the numbers go to; UserError, on every rank, where one is not installed."""
        if not self.config.loggers:
            return None
        on_main(self.topology, lambda: require_trackers(self.config.loggers))
        parts = [part.removesuffix(".partial") for part in self.directory.absolute().parts[-3:]]
        return Tracked(
            by=self.config.loggers,
            project=self.config.logger_project,
            name="-".join(parts),
            settings=self.config.model_dump(mode="json") | {"model": self.model.config.model_dump(mode="json")},
            tell=partial(say, self.topology),
        )

    @property
    def steps_here(self) -> int:
        """Steps of this run so far."""
        return self.engine.step_index - self.state.first_step

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.state.stopped or self.steps_here >= self.config.max_steps

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

        with nullcontext() if self.stragglers is None else self.stragglers.look(number):
            result, labels = self._train(number, accept)
        self.hang.rest()
        # Masked labels included: the budget and the comparison of arms count what the model reads.
        tokens = self.loader.global_batch * self.loader.seq_len
        self.state.tokens += tokens
        self.throughput.add(tokens)
        with span(LOG):
            if self.due(self.config.log_every) or result.skipped:
                self._log_step(result, labels)
            self._log_layers(result, spike, position)
        # Last, for they may raise: the step and its documents stand in the log by then.
        if spike is not None and action == "stop":
            raise DivergedError(
                f"training stopped at step {result.step}, before its update: {spike};"
                " `pretrain.spike.action=skip` goes on without it"
            )
        if self.spikes is not None:
            self.spikes.add(result.loss, result.grad_norm)
        self.guard.add_step(result.step, result.loss, result.grad_norm, result.lr, skipped=result.skipped)
        return result

    def _train(self, number: int, accept: Accept) -> tuple[StepResult, int]:
        """Read the batch and make the step; its result, and the labels of the whole job."""
        self.hang.begin(f"step {number}: reading its batch")
        with span(DATA):
            batch = self.loader.next_batch()
            microbatches = split_batch(batch, self.config.micro_batch, equal=self.topology.pp.size > 1)
        self.hang.begin(f"step {number}")
        # Of the whole job, for masked windows are spread unevenly: dividing by each rank's own count would weigh tokens
        # differently from layout to layout.
        labels = int(sum_over(self.topology.dp, count_labels(batch.labels_BS).to(self.topology.device)))
        # A batch whose labels are all masked has a loss of 0 and must not divide by 0.
        denominator = max(1, labels)
        watched = nullcontext(self.loss_fn)
        if self.watcher is not None:
            watched = self.watcher.watching(microbatches, self.loss_fn, denominator)
        with watched as loss_fn:
            result = self.engine.step(
                microbatches, loss_fn, denominator=denominator, accept=accept,
                rows_of=lambda batch: documents_apart(batch, self.topology.device),
                dropouts=self._dropouts(microbatches),
            )  # fmt: skip
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

    def _log_step(self, result: StepResult, labels: int) -> None:
        extras = {name: value / max(1, labels) for name, value in result.extras.items()}
        values = {"loss": result.loss, "grad_norm": result.grad_norm, "lr": result.lr}
        values |= {"weight_decay": result.weight_decay, "skipped": result.skipped}
        self.log.write(
            "train",
            result.step,
            values | {"tokens": self.state.tokens} | extras | self.throughput.measure(),
        )
        slowest = None if self.stragglers is None else self.stragglers.take()
        if slowest is not None:
            self.log.write("ranks", result.step, asdict(slowest))

    def _log_layers(self, result: StepResult, spike: str | None, position: dict[str, Any]) -> None:
        """The gradient's norms by layer, where they are due or the step went wrong; then also what it read."""
        wrong = result.skipped or spike is not None
        if not (wrong or self.due(self.config.layer_norms_every)):
            return
        norms = gradient_norms(self.engine, result.grad_norm)
        if not wrong:
            self.log.write("layers", result.step, norms)
            return
        why = spike or "loss or gradient is not finite"
        say(self.topology, f"step {result.step}: {'skipped, ' if result.skipped else ''}{why}; {told(norms)}")
        if self.topology.is_main:
            # The documents that it read: one that spoils steps again and again is among them.
            values = {"loss": result.loss, "grad_norm": result.grad_norm, "lr": result.lr, "why": why}
            read = {"layers": norms, "documents": self.loader.documents_at(position)}
            self.log.write("skipped" if result.skipped else "spike", result.step, values | read)

    def evaluate(self, *, judge: bool) -> None:
        """Measure the held-out losses and, if asked, let the plateau detector judge the reference loss.

        Raises DivergedError where the losses have been out of bounds for too long, or no longer fall but were lower.
        """
        held = self.config.evaluate_with
        with self.throughput.pause(), span(EVALUATE), self.engine.holding(held):
            # The same order of sets on every rank: each evaluation is full of collectives.
            losses = {
                name: held_out_loss(self.model, batches, micro_batch=self.config.micro_batch)
                for name, batches in self.held_out.items()
            }
        for name, weights in self.mixed.items():
            losses[name] = sum(w * losses[part] for part, w in weights.items()) / sum(weights.values())
        losses = broadcast_object(losses, self.topology)  # a last bit at a limit would part the ranks
        step = self.engine.step_index
        self.state.losses, self.state.evaluated_at = losses, step
        values = {f"{name}_loss": loss for name, loss in losses.items()}
        if losses:
            record: dict[str, float | int | str] = {**values, "tokens": self.state.tokens}
            if held != "raw":
                record["weights"] = held
            self.log.write("eval", step, record)
        # Before the detector, which is shown NaN where this says that the losses are out of bounds.
        out = self.guard.add_evaluation(losses)
        if judge and self.detector is not None:
            # Out of bounds, a loss says nothing of progress. Rank 0 decides for all.
            loss = nan if out else losses["reference"]
            # Called on every rank, though only rank 0's decision counts: the detector's state stands in a checkpoint.
            decision = self.detector.update(self.steps_here, loss, self.state.tokens)
            # A rising loss ends by the detector's rule too; whether the run succeeded is told apart here.
            worse = self.guard.worse(step) if decision.kind == "plateau" else None
            decision, worse = broadcast_object((decision, worse), self.topology)
            if worse is not None:
                raise DivergedError(worse)
            self._take_decision(decision)
        # After the plateau, so that `finished` is known: at the last evaluation one out of bounds is enough.
        fault = broadcast_object(self.guard.fault(step, last=self.finished), self.topology)
        if fault is not None:
            raise DivergedError(fault)
        if self.evaluated is not None:
            self.evaluated(step, losses, self.finished)

    def _take_decision(self, decision: PlateauDecision) -> None:
        self.state.plateau, self.state.budget = decision.kind == "plateau", decision.kind == "budget"
        self.state.reason = decision.reason
        self.log.write(
            "plateau",
            self.engine.step_index,
            {
                "stop": decision.stop,
                "ended_by": decision.kind,
                "reason": decision.reason,
                "improvement": decision.improvement,
                "evaluations": decision.evaluations,
            },
        )
        if decision.stop:
            say(self.topology, decision.reason)

    def save(self) -> None:
        """Write a checkpoint from which this run, or a later one, goes on."""
        directory = self.directory / CHECKPOINTS
        path = step_path(directory, self.engine.step_index)
        extra = {
            "step": self.engine.step_index,
            "config": self.config.model_dump(mode="json"),
            "data": self.loader.state_dict(),
            "progress": asdict(self.state),
            "plateau": None if self.detector is None else self.detector.state_dict(),
            "guard": self.guard.state_dict(),
            "spikes": None if self.spikes is None else self.spikes.state_dict(),
        }
        parents = {} if self.start is None else {"start": self.start}
        old, every, first = self.saved, self.config.checkpoint_every, self.state.first_step

        def prune(place: Path) -> None:
            # The checkpoint of a stop between two regular ones goes, so that a run keeps what it keeps without stops.
            if old is not None and old != path and (every == 0 or (step_of(old) - first) % every):
                remove_directory(place / old.name)
            kept = self.config.keep_every
            remove_older(place, self.config.keep_checkpoints, lambda step: kept > 0 and (step - first) % kept == 0)

        def copy() -> None:
            if self.copies is not None:
                copy_checkpoint(path, self.copies)
                copy_record(self.directory, self.copies)
                prune(self.copies)

        with self.throughput.pause(), span(CHECKPOINT):
            self.saver.save(
                path, self.engine, extra, parents=parents, seed=self.seed, then=lambda: prune(directory), last=copy
            )
        self.saved = path

    def stop(self) -> NoReturn:
        """Save, as the job was asked to stop; raises Stopped. While training goes wrong nothing is saved."""
        step = self.engine.step_index
        if not self.guard.sound:
            raise Stopped(f"{self.directory}: stopped after step {step}; it goes on from the checkpoint before")
        if self.saved != step_path(self.directory / CHECKPOINTS, step):
            self.save()
        self.saver.finish()
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
        path = step_path(self.directory / CHECKPOINTS, step)
        # A finished run that is started again has its last checkpoint already, and writes nothing.
        if self.saved != path:
            if state.evaluated_at != step:
                self.evaluate(judge=False)
            self.save()
        self.saver.finish()
        return PretrainResult(
            step=step,
            tokens=state.tokens,
            losses=dict(state.losses),
            plateau=state.plateau,
            reason=state.reason,
            skipped=self.guard.skips.in_all,
            checkpoint=path,
        )


def split_batch(batch: Batch, micro_batch: int, *, equal: bool) -> list[Batch]:
    """Cut this rank's rows into micro-batches; a pipeline needs them `equal` (else UserError)."""
    rows = batch.tokens_BS.size(0)
    # The last micro-batch may be smaller, for losses are sums; only a pipeline fixes the shape that its stages receive.
    size = min(micro_batch, rows)
    if equal and rows % size:
        raise UserError(f"setting `micro_batch`: {size} does not divide the {rows} sequences of a rank in a pipeline")
    return [batch.rows(start, start + size) for start in range(0, rows, size)]
