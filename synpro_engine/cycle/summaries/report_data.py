"""All that the page of a run shows, section by section."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import CHECKPOINT, IMPORT
from synpro_engine.cycle.stages import Stage
from synpro_engine.cycle.steps.training import ORGANIC
from synpro_engine.cycle.summaries.arms import arms
from synpro_engine.cycle.summaries.corpus import corpus
from synpro_engine.cycle.summaries.downstream import downstream
from synpro_engine.cycle.summaries.effective_tokens import effective_tokens
from synpro_engine.cycle.summaries.efficiency import efficiencies
from synpro_engine.cycle.summaries.environment import environment
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.cycle.summaries.influence import influence
from synpro_engine.cycle.summaries.pretraining import pretraining
from synpro_engine.cycle.summaries.provenance import provenance
from synpro_engine.cycle.summaries.samples import samples
from synpro_engine.cycle.summaries.timeline import timeline
from synpro_engine.cycle.summaries.tokens import tokens
from synpro_engine.cycle.summaries.tuning import tuning
from synpro_engine.cycle.summaries.yields import filtered, mixtures, yields
from synpro_engine.evaluate import Diversity
from synpro_engine.report import ModelInfo, Provenance, ReportData
from synpro_engine.train.checkpoint import checkpoint_model_config

_ROUND = ", round "
"""Behind the names of texts of rounds before the newest, as `evaluate` writes them."""


def report_data(directory: Path, recipe: Recipe, stages: Sequence[Stage], *, traced: bool = True) -> ReportData:
    """All that the page shows; parts of stages that are not finished stay empty.

    traced: whether trained windows are followed to their sources, which no other part is as slow as.
    """
    run = FinishedRun(directory, recipe, (stage.name for stage in stages))
    return ReportData(
        title=f"SynPro cycle: {recipe.name}",
        recipe=recipe.name,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        config=recipe.model_dump(mode="json"),
        models=_models(run),
        timeline=timeline(run, stages),
        corpus=corpus(run),
        pretraining=pretraining(run),
        influence=influence(run),
        tuning=tuning(run),
        yields=yields(run),
        filtered=filtered(run),
        mixtures=mixtures(run),
        samples=samples(run),
        diversity=_diversity(run),
        with_fewer_gauges=tuple(run.with_fewer_gauges),
        tokens=tokens(run),
        provenance=provenance(run) if traced else Provenance(),
        arms=arms(run),
        downstream=downstream(run),
        effective_tokens=effective_tokens(run),
        data_efficiency=efficiencies(run),
        environment=environment(run),
    )


def _diversity(run: FinishedRun) -> dict[str, Diversity]:
    """Of the organic texts, which every evaluation measures, and of the operations' of each arm and round."""
    found: dict[str, Diversity] = {}
    for arm, results in run.results().items():
        rounds = _rounds(run, arm)
        for name, of_texts in results.diversity.items():
            newest = rounds > 1 and _ROUND not in name and name != ORGANIC
            label = f"{name}{_ROUND}{rounds}" if newest else name
            found[label if arm is None or name == ORGANIC else run.of_arm(label, arm)] = of_texts
    return found


def _rounds(run: FinishedRun, arm: str | None) -> int:
    """That an arm trained in, for a round without texts has no name to count; None: of a recipe that names no arms."""
    name = next(iter(run.in_rounds), None) if arm is None else arm
    mine = [this for this in run.rounds if this.of_arm == name and this.arm in run.done]
    return max((this.number for this in mine), default=1)


def _models(run: FinishedRun) -> tuple[ModelInfo, ...]:
    """The pretrained model and the generator."""
    configs = [("pretrained", run.recipe.model)]
    if IMPORT in run.done:
        configs.append(("generator", checkpoint_model_config(run.directory / IMPORT / CHECKPOINT)))
    return tuple(
        ModelInfo(
            role=role,
            description=f"{m.family}, {m.layers} blocks, width {m.d_model}, vocabulary {m.vocab_size}",
            parameters=m.parameter_count(),
        )
        for role, m in configs
    )
