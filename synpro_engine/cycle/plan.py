"""The whole loop as a list of stages: the one place that knows in which order things are made from what.

Each stage's work is in `steps`, its settings in `settings`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from synpro_engine.config import read_manifest
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.config.own_code import own_reference
from synpro_engine.cycle.external import fingerprint, is_put_away, judge_files, task_keys
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import (
    EVALUATE,
    HELD_OUT,
    IMPORT,
    JUDGES,
    PRETRAIN,
    REFERENCES,
    REPEAT,
    SERVED,
    TOKENIZE,
    Round,
)
from synpro_engine.cycle.run_lock import stored_recipe
from synpro_engine.cycle.settings import SettingsOf, StageSettings, TasksSettings
from synpro_engine.cycle.stages import Stage, Work
from synpro_engine.cycle.steps.corpus import tokenize_stage
from synpro_engine.cycle.steps.evaluation import evaluate_stage
from synpro_engine.cycle.steps.pretraining import Training, arm_stage, pretrain_stage
from synpro_engine.cycle.steps.probe import probe_stage
from synpro_engine.cycle.steps.synthesis import Inputs, generate_stage, import_stage, tune_stage
from synpro_engine.cycle.steps.synthetic import synthetic_shards_stage
from synpro_engine.cycle.steps.tasks import tasks_stage
from synpro_engine.dist import Topology, on_main, say
from synpro_engine.train.watcher import Evaluated

_OUTSIDE = {
    TOKENIZE: ("corpus.source", "corpus.shards", "tokenizer.path"),
    IMPORT: ("generator.source",),
}
"""Keys that name what a stage reads from outside the run's directory."""


class Plan:
    """The stages of one run, as its recipe, its directory and the number of ranks make them."""

    def __init__(self, recipe: Recipe, directory: Path, topology: Topology, evaluated: Evaluated | None = None) -> None:
        """What lies outside the directory is taken as rank 0 sees it. evaluated: follows pretraining. Collective."""
        self._evaluated = evaluated
        self.recipe, self.directory, self.topology = recipe, directory, topology
        self._settings, self._tokens = SettingsOf(recipe), directory / TOKENIZE
        # Rank 0's look for all, since a stage's settings decide whether it runs: ranks that disagreed
        # would part at its first collective.
        self._contents = on_main(topology, lambda: _contents(recipe, directory))

    def stages(self) -> Iterator[Stage]:
        """All stages in order."""
        of, tokens = self._settings, self._tokens
        yield self._stage(TOKENIZE, TOKENIZE, partial(tokenize_stage, settings=of.tokenize), of.tokenize)
        if of.references is not None:
            yield self._tasks(REFERENCES, of.references, TOKENIZE)
        if of.held_out is not None:
            yield self._tasks(HELD_OUT, of.held_out, *self._measured)
        work = partial(import_stage, settings=of.generator, tokens=tokens)
        yield self._stage(IMPORT, IMPORT, work, of.generator, TOKENIZE)
        work = partial(pretrain_stage, training=self.training(PRETRAIN), evaluated=self._evaluated)
        # Not made from the imported generator: another one leaves pretraining as it is.
        yield self._stage(PRETRAIN, PRETRAIN, work, of.pretrain, *self._measured)
        for number in range(1, self.recipe.rounds + 1):
            yield from self._round(Round(number))
        yield from self._ending()

    def _tasks(self, name: str, settings: TasksSettings, *parents: str) -> Stage:
        def work(into: Path, *, topology: Topology) -> None:
            tell = partial(say, topology)
            on_main(topology, lambda: tasks_stage(into, settings, self._tokens, tell), label=name)

        return self._stage(name, TOKENIZE, work, settings, *parents)

    @property
    def _measured(self) -> tuple[str, ...]:
        """The stages with the text that training reads and is measured on."""
        return (TOKENIZE,) if self._settings.references is None else (TOKENIZE, REFERENCES)

    def _round(self, this: Round) -> Iterator[Stage]:
        recipe, of, directory = self.recipe, self._settings, self.directory
        work = partial(probe_stage, settings=of.probe, tokens=self._tokens, theta=directory / this.theta)
        yield self._stage(this.probe, "probe", work, of.probe, *self._measured, this.theta)
        for operation in recipe.tune:
            # Tuning goes on from the last round's generator, while the reward is measured on the weights of this one.
            before = Round(this.number - 1).tune(operation) if this.number > 1 else IMPORT
            work = partial(tune_stage, settings=of.tune(operation, this.number))
            yield self._synthesis(this, "tune", this.tune(operation), work, before)
        for operation in recipe.generate.names:
            generator = this.tune(operation) if operation in recipe.tune else IMPORT
            earlier = self._earlier(this)
            work = partial(
                generate_stage,
                settings=of.generate(operation, this.number),
                earlier={name: directory / stage for name, stage in earlier.items()},
            )
            yield self._synthesis(this, "generate", this.generate(operation), work, generator, *earlier.values())
        generated = {operation: this.generate(operation) for operation in recipe.generate.names}
        corpora = {operation: directory / name for operation, name in generated.items()}
        before = self._known(this)
        earlier = {directory / shards: [directory / stage for stage in of_it] for shards, of_it in before.items()}
        work = partial(
            synthetic_shards_stage, settings=of.shards, tokens=self._tokens, corpora=corpora, earlier=earlier
        )
        tasks = (HELD_OUT,) if len(of.shards.held_out) > 1 else ()
        known = [stage for shards, of_it in before.items() for stage in (shards, *of_it)]
        yield self._stage(this.shards, "generate", work, of.shards, TOKENIZE, *tasks, *generated.values(), *known)
        yield self._arm(this.arm)

    def _known(self, this: Round) -> dict[str, list[str]]:
        """The shards of earlier rounds, whose texts a filter of this one looks at, with what they were made from."""
        if self.recipe.filter.near_duplicate is None:
            return {}
        names = self.recipe.generate.names
        return {
            before.shards: [before.generate(operation) for operation in names]
            for before in map(Round, range(1, this.number))
        }

    def _earlier(self, this: Round) -> dict[str, str]:
        """By operation: the stages of the round before whose texts decide the shares of the slices in this one."""
        generate = self.recipe.generate
        if this.number == 1 or generate.mixture == "shares":
            return {}
        return {name: Round(this.number - 1).generate(name) for name in generate.names}

    def _synthesis(
        self, this: Round, command: str, name: str, work: partial[None], generator: str, *earlier: str
    ) -> Stage:
        """Tuning or generation: `work` but for the stages it reads."""
        directory = self.directory
        inputs = Inputs(
            tokens=self._tokens,
            theta=directory / this.theta,
            probe=directory / this.probe,
            base=directory / IMPORT,
            generator=directory / generator,
            judges=directory / JUDGES,
            served=directory / SERVED,
        )
        whole = partial(work, inputs=inputs)
        # A dict for its order without doubles: an untuned generator is the imported one.
        parents = dict.fromkeys((TOKENIZE, this.theta, this.probe, IMPORT, generator, *earlier))
        return self._stage(name, command, whole, work.keywords["settings"], *parents)

    @property
    def arms(self) -> dict[str, tuple[str, int, int]]:
        """By the arm's stage: the stage it trains on from, the rounds whose synthetic text it reads, its steps."""
        steps, last = self.recipe.continued.steps, self.recipe.rounds
        # All rounds so far: a round's text stays in the mixture when its successor's comes.
        rounds = {Round(n).arm: (Round(n).theta, n, steps) for n in range(1, last + 1)}
        # From the first plateau and for the steps of all rounds together, so that both arms end after as many tokens.
        return rounds | {REPEAT: (PRETRAIN, 0, steps * last)}

    def training(self, name: str) -> Training:
        """What pretraining or an arm is made from."""
        if name == PRETRAIN:
            return Training(name=name, settings=self._settings.pretrain, tokens=self._tokens)
        start, rounds, steps = self.arms[name]
        return Training(
            name=name,
            settings=self._settings.arm(steps, synthetic=rounds > 0),
            tokens=self._tokens,
            start=self.directory / start,
            synthetic={Round(n).name: self.directory / Round(n).shards for n in range(1, rounds + 1)},
            made={
                Round(n).name: {name: self.directory / Round(n).generate(name) for name in self.recipe.generate.names}
                for n in range(1, rounds + 1)
            },
        )

    def _arm(self, name: str) -> Stage:
        (start, rounds, _), training = self.arms[name], self.training(name)
        shards = [Round(number).shards for number in range(1, rounds + 1)]
        work = partial(arm_stage, training=training)
        return self._stage(name, EVALUATE, work, training.settings, *self._measured, start, *shards)

    def _ending(self) -> Iterator[Stage]:
        recipe, directory, last = self.recipe, self.directory, Round(self.recipe.rounds)
        yield self._arm(REPEAT)
        arms = {"at the plateau": PRETRAIN, "organic + synthetic": last.arm, "repeat organic": REPEAT}
        corpora = {operation: last.generate(operation) for operation in recipe.generate.names}
        work = partial(
            evaluate_stage,
            settings=self._settings.evaluate,
            tokens=self._tokens,
            arms={name: directory / stage for name, stage in arms.items()},
            pair=(directory / last.theta, directory / last.probe),
            corpora={operation: directory / stage for operation, stage in corpora.items()},
        )
        tasks = () if self._settings.held_out is None else (HELD_OUT,)
        parents = dict.fromkeys((TOKENIZE, *tasks, *arms.values(), last.theta, last.probe, *corpora.values()))
        yield self._stage(EVALUATE, EVALUATE, work, self._settings.evaluate, *parents)

    def _stage(self, name: str, command: str, work: Work, settings: StageSettings, *parents: str) -> Stage:
        config = settings.recorded()
        # Digests stand in the settings, so that a changed file makes a stage stale in the way of a changed key.
        if name in self._contents:
            config["contents"] = self._contents[name]
        layout, seed = self.recipe.layout_of(name, self.topology.world_size), config.get("seed", self.recipe.seed)
        return Stage(name=name, command=command, work=work, config=config, parents=parents, seed=seed, layout=layout)


def _contents(recipe: Recipe, directory: Path) -> dict[str, dict[str, str]]:
    """By the stage that reads it: digests of what the recipe names outside the run's directory, by key.

    Of a file that is gone, but stands in the stored recipe under the same path, it is the one that the finished stage
    recorded: a corpus may be put away once it is tokenised, and there is nothing to make the stage from anew.
    """
    stored, contents = stored_recipe(directory), {}
    references, held_out = task_keys(recipe)
    rounds = [Round(number) for number in range(1, recipe.rounds + 1)]
    files, named = judge_files(recipe), recipe.reward.judges

    def asked(operation: str, also: Sequence[str] = ()) -> dict[str, str]:
        # Of judges that a question is put to those alone that are asked: another's files leave a stage as it is.
        weighed = {*also, *recipe.reward.weights(operation)}
        return {key: reward for key, reward in files.items() if reward not in named.asked or reward in weighed}

    judges = {this.tune(name): tuple(asked(name)) for this in rounds for name in recipe.tune}
    for this in rounds:
        for name in recipe.generate.names:
            of_texts = asked(name, recipe.asked_of_texts).items()
            judges[this.generate(name)] = tuple(key for key, reward in of_texts if recipe.generate.measures(reward))
    judges = {stage: keys for stage, keys in judges.items() if keys}
    learnt = ("pretrain.distill.teachers",) if recipe.pretrain.distill is not None else ()
    learnt += ("mix.organic.scores",) if recipe.mix.from_file else ()
    taught = dict.fromkeys((PRETRAIN, REPEAT, *(this.arm for this in rounds)), learnt) if learnt else {}
    outside = dict(_OUTSIDE)
    if recipe.corpus.validation_shards is not None:  # not of runs of before it was there
        outside[TOKENIZE] += ("corpus.validation_shards",)
    for stage, keys in (outside | {REFERENCES: references, HELD_OUT: held_out} | judges | taught).items():
        recorded = {}
        if stored is not None and (directory / stage / MANIFEST).exists():
            # Under another path a file that is gone is a slip, and not one that was put away.
            same = [key for key in keys if _is_there(stored, key) and stored.at(key) == recipe.at(key)]
            recorded = read_manifest(directory / stage).config.get("contents", {})
            recorded = {key: recorded[key] for key in same if key in recorded and is_put_away(recipe.at(key))}
        contents[stage] = {key: fingerprint(recipe.at(key)) for key in keys} | recorded
    for operation, file in recipe.generate.files.items():
        for stage in (stage for this in rounds for stage in (this.tune(operation), this.generate(operation))):
            contents.setdefault(stage, {})["generate.operations"] = fingerprint(str(file))
    for this in rounds:
        for operation, config in recipe.tune.items():
            if (own := own_reference(config.surrogate)) is not None:
                digest = fingerprint(str(own.file))
                contents.setdefault(this.tune(operation), {})[f"tune.{operation}.surrogate"] = digest
        for name, reference in recipe.reward.functions.items():
            own = own_reference(reference)
            assert own is not None, "the settings were checked"
            for stage in _stages_that_measure(recipe, this, name):
                contents.setdefault(stage, {})[f"reward.functions.{name}"] = fingerprint(str(own.file))
    return contents


def _stages_that_measure(recipe: Recipe, this: Round, reward: str) -> list[str]:
    """The stages of a round that ask a reward of the user's own."""
    weighing = [name for name in recipe.generate.names if recipe.reward.weights(name).get(reward)]
    generated = [this.generate(name) for name in weighing if recipe.generate.measures(reward)]
    return [this.tune(name) for name in weighing if name in recipe.tune] + generated


def _is_there(recipe: Recipe, key: str) -> bool:
    """Whether the recipe has what the key names: tasks of a name, judges from files, and teachers it may lack."""
    section, name, *_ = key.split(".")
    if name == "distill":
        return recipe.pretrain.distill is not None
    if section == "mix":
        return recipe.mix.from_file
    if section == "reward":
        return key in judge_files(recipe)
    return section not in ("references", "held_out") or name in recipe.at(section)
