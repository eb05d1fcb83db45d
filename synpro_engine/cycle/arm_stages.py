"""The stages of one arm, from the plateau to its evaluation, as they follow from each other."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from synpro_engine.cycle.graph import Graph
from synpro_engine.cycle.run_layout import (
    ASKED,
    EVALUATE,
    HELD_OUT,
    IMPORT,
    JUDGES,
    PRETRAIN,
    REFERENCES,
    SERVED,
    TOKENIZE,
    UNIQUE,
    Round,
    evaluation_of_arm,
    seeded,
    training_of_arm,
)
from synpro_engine.cycle.settings import SettingsOf, StageSettings
from synpro_engine.cycle.steps.deciding import decide_stage
from synpro_engine.cycle.steps.evaluation import Measured, evaluate_stage
from synpro_engine.cycle.steps.generating import generate_stage
from synpro_engine.cycle.steps.pretraining import arm_stage
from synpro_engine.cycle.steps.probe import probe_stage
from synpro_engine.cycle.steps.rewards import Inputs
from synpro_engine.cycle.steps.synthetic import synthetic_shards_stage
from synpro_engine.cycle.steps.training import Training
from synpro_engine.cycle.steps.tuning import tune_stage

_IN_ROUNDS = frozenset({"probe", "tune", "generate", EVALUATE})
"""Commands that bring up stages of later rounds, where there are any."""


class ArmStages:
    """Adds an arm's stages to a graph. Theta, probes and texts are of the first seed; the others train on the same."""

    def __init__(self, graph: Graph, name: str) -> None:
        self._graph, self.name, self.arm = graph, name, graph.recipe.all_arms[name]
        self._recipe = graph.recipe.of_arm(name)
        self._of = SettingsOf(self._recipe)
        self._directory, self._tokens = graph.directory, graph.directory / TOKENIZE
        self.trained: dict[int | None, list[str]] = {seed: [PRETRAIN] for seed in graph.recipe.arm_seeds}
        """By seed: pretraining, and the stages that train on from it."""
        self._pools: dict[str, str] = {}
        """Shards by the name of their source."""
        self._made: dict[str, dict[str, Path]] = {}
        """By the same: what generated it, by operation."""
        self._generators: dict[str, str] = {}
        self.generated: dict[str, str] = {}
        """Of the newest round, by operation."""
        self._pair: tuple[str, str] | None = None

    @property
    def measured(self) -> tuple[str, ...]:
        """The stages with the text that training reads and is measured on."""
        return (TOKENIZE,) if self._of.references is None else (TOKENIZE, REFERENCES)

    @property
    def pair(self) -> tuple[str, str]:
        """The stages of theta and of the probe of the newest round."""
        assert self._pair is not None, "an arm in rounds has one"
        return self._pair

    @property
    def earlier(self) -> dict[str, Path]:
        """What generated in the rounds before the newest, by operation and round; all that follows is made from it."""
        rounds = list(self._made.values())[:-1]
        return {f"{name}, round {at}": stage for at, made in enumerate(rounds, 1) for name, stage in made.items()}

    def add_rounds(self) -> bool:
        """Add the rounds that are known of up to now; whether these are all."""
        recipe, known = self._graph.recipe, self._graph.known
        for number in range(1, recipe.rounds + 1):
            self._round(this := Round(number, self.name))
            if recipe.cycle.decides and number < recipe.rounds:
                follows = known.most or known.further.get(self._decide(this))
                if not follows:
                    return follows is False
        return True

    def add_training(self, steps: int) -> None:
        """Add the one stage that an arm without rounds trains on in."""
        if self.arm.text == "unique":
            self._pools[UNIQUE] = UNIQUE
        self._train(training_of_arm(self.name), steps, rounds=False)

    @property
    def own_steps(self) -> int | None:
        """That an arm without rounds is told to take; None where it goes by the others."""
        return self._recipe.continued.steps if "steps" in self.arm.continued else None

    @property
    def steps_in_rounds(self) -> int | None:
        """That all rounds took with the first seed; None while that is not known."""
        own, known = self._recipe.continued, self._graph.known
        if known.most or own.plateau is None:
            return own.steps * (len(self.trained[None]) - 1)
        begin, end = known.ended.get(PRETRAIN), known.ended.get(self.trained[None][-1])
        return None if begin is None or end is None else end - begin

    def _round(self, this: Round) -> None:
        theta = self.trained[None][-1]
        self._pair = theta, self._probe(this, theta)
        for operation in self._recipe.tune:
            self._tune(this, operation)
        self._generate(this)
        self._pools[this.name] = self._graph.shards[this] = self._shards(this)
        self._made[this.name] = self._paths(self.generated)
        self._train(this.arm, self._recipe.continued.steps, rounds=True)

    def _probe(self, this: Round, theta: str) -> str:
        of, work = self._of, partial(probe_stage, settings=self._of.probe, tokens=self._tokens)
        # What hangs on no setting of an arm's stands where it always did.
        common = of.probe == SettingsOf(self._graph.recipe).probe
        first = Round(1).probe if common else this.own_probe
        name = first if theta == PRETRAIN else this.probe
        return self._add(name, "probe", partial(work, theta=self._directory / theta), of.probe, *self.measured, theta)

    def _tune(self, this: Round, operation: str) -> None:
        # Tuning goes on from the last round's generator, while the reward is measured on the weights of this one.
        afresh = self._graph.recipe.cycle.tune_from == "base"
        before = IMPORT if afresh else self._generators.get(operation, IMPORT)
        work = partial(tune_stage, settings=self._of.tune(operation, this.number))
        self._generators[operation] = self._synthesis("tune", this.tune(operation), work, before)

    def _generate(self, this: Round) -> None:
        generate, before, made = self._recipe.generate, self.generated, dict[str, str]()
        # The texts of the round before decide the shares of the slices in this one.
        earlier = before if generate.mixture == "influence" else {}
        for operation in generate.names:
            work = partial(
                generate_stage,
                settings=self._of.generate(operation, this.number),
                earlier=self._paths(earlier),
            )
            generator = self._generators.get(operation, IMPORT)
            made[operation] = self._synthesis("generate", this.generate(operation), work, generator, *earlier.values())
        self.generated = self._graph.generated[this] = made

    def _synthesis(self, command: str, name: str, work: partial[None], generator: str, *earlier: str) -> str:
        """Tuning or generation: `work` but for the stages it reads."""
        directory, (theta, probe) = self._directory, self.pair
        inputs = Inputs(
            tokens=self._tokens,
            theta=directory / theta,
            probe=directory / probe,
            base=directory / IMPORT,
            generator=directory / generator,
            judges=directory / JUDGES,
            served=directory / SERVED,
        )
        whole = partial(work, inputs=inputs)
        parents = (TOKENIZE, theta, probe, IMPORT, generator, *earlier)
        return self._add(name, command, whole, work.keywords["settings"], *parents)

    def _shards(self, this: Round) -> str:
        of = self._of.shards
        # The texts of earlier rounds, where a filter of this one looks at them.
        looks_back = self._recipe.filter.near_duplicate is not None
        before = {
            shards: list(self._graph.generated[Round(number, self.name)].values())
            for number, shards in enumerate(self._pools.values() if looks_back else (), start=1)
        }
        work = partial(
            synthetic_shards_stage,
            settings=of,
            tokens=self._tokens,
            corpora=self._paths(self.generated),
            earlier={
                self._directory / shards: [self._directory / stage for stage in made] for shards, made in before.items()
            },
        )
        tasks = (HELD_OUT,) if len(of.held_out) > 1 else ()
        known = [stage for shards, made in before.items() for stage in (shards, *made)]
        return self._add(this.shards, "generate", work, of, TOKENIZE, *tasks, *self.generated.values(), *known)

    def _train(self, stage: str, steps: int, *, rounds: bool) -> None:
        for seed, trained in self.trained.items():
            settings = self._of.arm(
                steps, synthetic=bool(self._pools), rounds=rounds, seed=seed, unique_tokens=self.arm.unique_tokens
            )
            name, start = seeded(stage, seed), trained[-1]
            training = Training(
                name=name,
                settings=settings,
                tokens=self._tokens,
                start=self._directory / start,
                order_before=self._graph.trainings[start].settings.seed,
                synthetic=self._paths(self._pools),
                made=dict(self._made),
                arm=self.name,
            )
            work, asked = partial(arm_stage, training=training), (ASKED,) if settings.questions else ()
            parents = (*self.measured, *asked, start, *self._pools.values())
            trained.append(self._add(name, EVALUATE, work, settings, *parents))
            self._graph.trainings.setdefault(trained[-1], training)

    def _decide(self, this: Round) -> str:
        trained = self.trained[None]
        work = partial(
            decide_stage,
            settings=self._of.decide,
            trained=[self._directory / stage for stage in trained],
            directory=self._directory,
        )
        return self._add(this.decide, EVALUATE, work, self._of.decide, *trained, opens=_IN_ROUNDS)

    def evaluate(self) -> None:
        """Add the arm's own evaluation, once all else of it is there."""
        measured = [Measured(self.name, seed, self._directory / trained[-1]) for seed, trained in self.trained.items()]
        tasks = () if self._of.held_out is None else (HELD_OUT,)
        work = partial(
            evaluate_stage,
            settings=self._of.evaluate,
            tokens=self._tokens,
            arms=measured,
            pair=None if self._pair is None else (self._directory / self._pair[0], self._directory / self._pair[1]),
            corpora=self._paths(self.generated),
            earlier=self.earlier,
        )
        ends = [trained[-1] for trained in self.trained.values()]
        parents = (TOKENIZE, *tasks, *ends, *(self._pair or ()), *self.generated.values())
        name = self._add(evaluation_of_arm(self.name), EVALUATE, work, self._of.evaluate, *parents)
        self._graph.evaluations[self.name] = name
        self._graph.measured[name] = len(measured)

    def _add(
        self,
        name: str,
        command: str,
        work: partial[None],
        settings: StageSettings,
        *parents: str,
        opens: frozenset[str] = frozenset(),
    ) -> str:
        """Add a stage of this arm; its name, which is another arm's where that has the like."""
        return self._graph.add(name, command, work, settings, *parents, recipe=self._recipe, arm=self.name, opens=opens)

    def _paths(self, stages: dict[str, str]) -> dict[str, Path]:
        return {name: self._directory / stage for name, stage in stages.items()}
