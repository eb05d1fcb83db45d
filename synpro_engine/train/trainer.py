"""Pretraining from the first batch to the last checkpoint, resumable at any point.

The order of things stands here: step, log, evaluate, judge, save; how each is done is in `run` and `engine`. A run
lives in a directory: `metrics.jsonl`, `tensorboard/`, `checkpoints/`. Started again on the same directory it goes on
from the newest checkpoint. On the CPU and in the same layout it then ends with the same bits as a run that was not
interrupted: nothing in training draws random numbers (the data's order is a function of seed and position, and so is
what dropout leaves out). CUDA sums in no fixed order, and another layout in another one: there the same run goes on, up
to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from synpro_engine.backend.profiling import StepProfiler
from synpro_engine.data import Batch, TokenLoader
from synpro_engine.data.choices import QuestionSet
from synpro_engine.dist import progress
from synpro_engine.model.model import Model
from synpro_engine.train.config import TrainConfig, WeightsOf
from synpro_engine.train.out_of_memory import telling_out_of_memory
from synpro_engine.train.run import PretrainRun
from synpro_engine.train.run_state import PretrainResult
from synpro_engine.train.watcher import Evaluated, Watcher


def pretrain(
    model: Model,
    config: TrainConfig,
    loader: TokenLoader,
    directory: Path,
    *,
    held_out: Mapping[str, Iterable[Batch]] | None = None,
    mixed: Mapping[str, Mapping[str, float]] | None = None,
    start: Path | None = None,
    start_weights: WeightsOf = "raw",
    seed: int | None = None,
    label: str = "pretraining",
    watcher: Watcher | None = None,
    evaluated: Evaluated | None = None,
    teachers: Sequence[Model] = (),
    questions: Mapping[str, QuestionSet] | None = None,
    inputs: str | None = None,
) -> PretrainResult:
    """Train `model` for `config.max_steps` steps, or until the loss of the set `reference` is on a plateau.

    held_out: this rank's batches of each held-out set, by name, gone through anew at each evaluation. mixed: further
    sets by name, whose losses are means of those of the sets that they name, by weight. start: a checkpoint to begin
    from, with its weights, optimizer state and position in the data; steps go on counting from it. start_weights: which
    of its weights; behind an average of them the run's own averages begin anew.
    watcher: looks on while steps are made. evaluated: is told of evaluations, and may end the run. teachers: those that
    `config.distill` names, in this layout. questions: sets that are put to the model each `config.tasks_every` steps.
    inputs: a digest of all that the run is made from; a checkpoint with another one is refused.

    Collective. Raises UserError for a run directory of other settings and for checkpoints that do not fit,
    DivergedError for training that went wrong: the newest checkpoint is from before; and Stopped, after a checkpoint,
    when the job is asked to stop before its end. Where memory runs out, UserError says what takes it and which settings
    make it less.
    """
    telling = partial(telling_out_of_memory, model, config, loader.seq_len, teachers)
    with telling():  # the optimizer's state is taken here, or with the first step
        run = PretrainRun(
            model,
            config,
            loader,
            directory,
            held_out or {},
            mixed or {},
            seed,
            start,
            watcher,
            evaluated,
            teachers,
            start_weights,
            questions,
            inputs,
        )
        resumed = run.begin()
    run.open_log(resumed)
    profiler = StepProfiler(directory, model.topology.rank, model.topology.device)
    bar = progress(config.max_steps, label, "step", model.topology, run.steps_here)
    with telling(), run.log, closing(profiler), bar, run.checkpoints.saver:
        if not resumed:  # where the curve begins, and what the guards measure later losses against
            run.evaluations.measure(run.state, judge=False)
            run.evaluations.ask(run.state)
        while not run.finished:
            run.checkpoints.saver.check()
            with profiler.step(run.engine.step_index + 1):
                result = run.step()
                bar.set_postfix(loss=f"{result.loss:.3f}", lr=f"{result.lr:.1e}", refresh=False)
                bar.update()
                # Before a checkpoint of the same step, which then holds what the detector has seen.
                if run.to_evaluate:
                    run.evaluations.measure(run.state, judge=True)
                if run.due(config.tasks_every) and not run.finished:  # then in `end`, behind its evaluation
                    run.evaluations.ask(run.state)
                run.save_if_due(last=result.stop)
            # Every rank has the same answer from the step itself. A run at its end saves in `end`, with its evaluation.
            if result.stop and not run.finished:
                run.stop()
        return run.end()
