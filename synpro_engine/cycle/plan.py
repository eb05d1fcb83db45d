"""The whole loop as a list of stages: the one place that knows in which order things are made from what.

Each stage's work is in `steps`, its settings in `settings`. The list grows where a finished stage says what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from synpro_engine.config import UserError
from synpro_engine.cycle.arm_stages import ArmStages
from synpro_engine.cycle.contents import Contents, contents_of
from synpro_engine.cycle.graph import Graph, Known, known_of
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import (
    ASKED,
    EVALUATE,
    HELD_OUT,
    IMPORT,
    PRETRAIN,
    REFERENCES,
    TITLES,
    TOKENIZE,
    UNIQUE,
    Round,
    evaluation_of_arm,
)
from synpro_engine.cycle.run_lock import stored_recipe
from synpro_engine.cycle.settings import SettingsOf, TasksSettings
from synpro_engine.cycle.stages import Stage
from synpro_engine.cycle.steps.corpus import tokenize_stage
from synpro_engine.cycle.steps.evaluation import Measured, evaluate_stage
from synpro_engine.cycle.steps.importing import import_stage
from synpro_engine.cycle.steps.pretraining import pretrain_stage
from synpro_engine.cycle.steps.tasks import asked_stage, tasks_stage
from synpro_engine.cycle.steps.training import Training
from synpro_engine.cycle.steps.unique import unique_stage
from synpro_engine.dist import Topology, on_main, say
from synpro_engine.train.watcher import Evaluated

_PLATEAU = "at the plateau"
"""What theta is called where the arms are measured that a recipe without `arms` has."""


class Plan:
    """The stages of one run, as its recipe, its directory and the number of ranks make them."""

    def __init__(
        self,
        recipe: Recipe,
        directory: Path,
        topology: Topology,
        evaluated: Evaluated | None = None,
        text: Path | None = None,
    ) -> None:
        """What lies outside the directory is taken as rank 0 sees it. Collective.

        evaluated: follows pretraining. text: another run, whose tokens this one reads.
        """
        self.recipe, self.directory, self.topology = recipe, directory, topology
        self._evaluated, self._known = evaluated, Known()
        # Rank 0's look for all, since a stage's settings decide whether it runs: ranks that disagreed
        # would part at its first collective.
        self._contents = on_main(topology, lambda: _contents(recipe, directory, text))
        self._graph: Graph
        self.look()

    def look(self) -> bool:
        """Look at what finished stages say of those to come; whether there is news. Collective."""
        before, self._known = self._known, on_main(self.topology, lambda: known_of(self.recipe, self.directory))
        self._graph = Graph(self.recipe, self.directory, self.topology.world_size, self._contents, self._known)
        add_stages(self._graph, self._evaluated)
        return self._known != before

    def stages(self) -> Iterator[Stage]:
        """All stages in order, as far as they are known."""
        return iter(self._graph.stages)

    @property
    def trainings(self) -> dict[str, Training]:
        """What pretraining and each training stage of an arm is made from, by stage in their order."""
        return self._graph.trainings

    @property
    def generated(self) -> dict[Round, dict[str, str]]:
        """By round of an arm and by operation: the stages that generate."""
        return self._graph.generated

    @property
    def shards(self) -> dict[Round, str]:
        """By round of an arm: the stage with its texts as tokens."""
        return self._graph.shards


def _contents(recipe: Recipe, directory: Path, text: Path | None) -> Contents:
    contents = contents_of(recipe, stored_recipe(directory), directory)
    if text is not None:  # what it was made from may be put away by now, which its own run knows alone
        of_text = contents_of(recipe, stored_recipe(text), text)
        contents |= {stage: of_text[stage] for stage in (TOKENIZE, REFERENCES)}
    return contents


def planned(recipe: Recipe, ranks: int) -> Graph:
    """All stages that a run may come to have, for who counts beforehand; UserError for an arm that is another one."""
    graph = Graph(recipe, Path(), ranks, {}, Known(most=True))
    add_stages(graph)
    _refuse_equal_arms(graph)
    return graph


def _refuse_equal_arms(graph: Graph) -> None:
    """An arm whose settings no stage of its own goes by would be trained once, and reported under another's name."""
    for name in graph.recipe.arms:
        stage = graph.evaluations[name]
        if stage != evaluation_of_arm(name):
            other = next(arm for arm, its in graph.evaluations.items() if its == stage)
            raise UserError(
                f"arms.{name}: nothing that it does goes by its settings, so that it would be arms.{other} once more"
            )


def looked_at(recipe: Recipe, directory: Path) -> Graph:
    """The stages that are known of a run, for who looks at it from outside and runs none."""
    graph = Graph(recipe.undivided(), directory, 1, {}, known_of(recipe, directory))
    add_stages(graph)
    return graph


def add_stages(graph: Graph, evaluated: Evaluated | None = None) -> None:
    """Add all stages that are known."""
    of, tokens = SettingsOf(graph.recipe), graph.directory / TOKENIZE
    _add_texts(graph, of, tokens)
    work = partial(import_stage, settings=of.generator, tokens=tokens)
    graph.add(IMPORT, IMPORT, work, of.generator, TOKENIZE)
    training = Training(name=PRETRAIN, settings=of.pretrain, tokens=tokens)
    graph.trainings[PRETRAIN] = training
    measured = (TOKENIZE,) if of.references is None else (TOKENIZE, REFERENCES)
    # Not made from the imported generator: another one leaves pretraining as it is.
    work = partial(pretrain_stage, training=training, evaluated=evaluated)
    graph.add(PRETRAIN, PRETRAIN, work, of.pretrain, *measured, *((ASKED,) if of.pretrain.questions else ()))
    graph.whole = _add_arms(graph, of, tokens)


def _add_texts(graph: Graph, of: SettingsOf, tokens: Path) -> None:
    recipe = graph.recipe

    def add_tasks(name: str, settings: TasksSettings, *parents: str, stage: Callable[..., None] = tasks_stage) -> None:
        def work(into: Path, *, topology: Topology) -> None:
            tell = partial(say, topology)
            on_main(topology, lambda: stage(into, settings, tokens, tell), label=name)

        graph.add(name, TOKENIZE, work, settings, *parents)

    graph.add(TOKENIZE, TOKENIZE, partial(tokenize_stage, settings=of.tokenize), of.tokenize)
    if of.references is not None:
        add_tasks(REFERENCES, of.references, TOKENIZE)
    if of.held_out is not None:
        add_tasks(HELD_OUT, of.held_out, *((TOKENIZE,) if of.references is None else (TOKENIZE, REFERENCES)))
    if of.asked is not None:
        add_tasks(ASKED, of.asked, TOKENIZE, stage=asked_stage)
    if recipe.most_unique_tokens:
        settings = of.unique(recipe.most_unique_tokens)
        graph.add(UNIQUE, TOKENIZE, partial(unique_stage, settings=settings, tokens=tokens), settings, TOKENIZE)


def _add_arms(graph: Graph, of: SettingsOf, tokens: Path) -> bool:
    """Add what is known of all arms, those in rounds first; whether that is all."""
    recipe = graph.recipe
    arms = [ArmStages(graph, name) for name in recipe.all_arms]
    in_rounds = [arm for arm in arms if arm.arm.in_rounds]
    if recipe.several:
        _add_evaluation(graph, of, tokens, [Measured(_PLATEAU, None, graph.directory / PRETRAIN)], None)
    whole = True
    for arm in in_rounds:
        ended = arm.add_rounds()
        whole &= ended
        if ended and recipe.several:
            arm.evaluate()
    # As many steps as the longest of those takes, so that the comparison is of the text alone.
    taken = [arm.steps_in_rounds for arm in in_rounds] or [recipe.continued.steps * recipe.rounds]
    longest = max((steps for steps in taken if steps is not None), default=0)
    for arm in arms:
        if arm.arm.in_rounds:
            continue
        steps = arm.own_steps or (longest if whole and None not in taken else None)
        if steps is None:
            whole = False
            continue
        arm.add_training(steps)
        if recipe.several:
            arm.evaluate()
    if whole and not recipe.several:
        stages = [(_PLATEAU, PRETRAIN), *((TITLES[arm.name], arm.trained[None][-1]) for arm in arms)]
        measured = [Measured(name, None, graph.directory / stage) for name, stage in stages]
        _add_evaluation(graph, of, tokens, measured, in_rounds[0])
    return whole


def _add_evaluation(
    graph: Graph, of: SettingsOf, tokens: Path, measured: list[Measured], arm: ArmStages | None
) -> None:
    """The run's own evaluation: of the plateau, and of a recipe that names no arms of all else. arm: the texts'."""
    directory, pair = graph.directory, () if arm is None else arm.pair
    made = {} if arm is None else arm.generated
    work = partial(
        evaluate_stage,
        settings=of.evaluate,
        tokens=tokens,
        arms=measured,
        pair=(directory / pair[0], directory / pair[1]) if pair else None,
        corpora={operation: directory / stage for operation, stage in made.items()},
        earlier={} if arm is None else arm.earlier,
    )
    tasks = () if of.held_out is None else (HELD_OUT,)
    stages = [str(one.stage.relative_to(directory)) for one in measured]
    name = graph.add(EVALUATE, EVALUATE, work, of.evaluate, TOKENIZE, *tasks, *stages, *pair, *made.values())
    graph.measured[name] = len(measured)
