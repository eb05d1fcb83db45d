"""What each stage may read of a recipe. A stage is handed nothing else, so this is also what its result depends on.

`recorded()` of a stage's settings stands in its manifest: all of them but `EXECUTION`. What lies outside of the run (a
corpus, a tokenizer, a generator) is recorded by its content, not by its path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from synpro_engine.backend import platform
from synpro_engine.config import Config
from synpro_engine.cycle.arm_sections import CycleConfig
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.run_layout import held_out_shards, reference_shards
from synpro_engine.cycle.sections import (
    ContinueConfig,
    CorpusConfig,
    GeneratorConfig,
    OrganicCurriculum,
    PretrainConfig,
    TaskConfig,
    TokenizerConfig,
)
from synpro_engine.data import CurriculumConfig
from synpro_engine.influence import EstimatorConfig, ProbeConfig
from synpro_engine.model.config import ModelConfig
from synpro_engine.reward import RewardConfig
from synpro_engine.rl.config import TuneConfig
from synpro_engine.synth import PAPER, FilterConfig, GenerateConfig, MegadocConfig, PromptConfig, SliceConfig
from synpro_engine.train.config import OptimizerConfig, ScheduleConfig, WeightsOf

Dtype = Literal["float32", "bfloat16"]


class StageSettings(Config):
    """Settings of one stage."""


class TokenizeSettings(StageSettings):
    """Splits, tokenizer and shards of the organic text."""

    # The model's, to refuse a tokenizer early, and what later stages read, to refuse files that hold none.
    EXECUTION: ClassVar[frozenset[str]] = frozenset({"vocab_size", "tasks"})

    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    vocab_size: int
    tasks: dict[str, TaskConfig] = Field(default={})
    """By the names of their shards."""
    seed: int


class TasksSettings(StageSettings):
    """Tasks from files as tokens."""

    sets: dict[str, TaskConfig]
    """By the names of their shards."""
    max_tokens: int | None
    """Cap of a set that has none of its own."""
    seq_len: int
    """Longest task: whole ones have to fit a window."""
    held_out: tuple[str, ...]
    """Shards of held-out text that must not stand in the others: is looked for in `searched`."""
    searched: tuple[str, ...]
    seed: int

    def cap(self, name: str) -> int | None:
        """Of a set: most tokens, if any."""
        return self.sets[name].max_tokens or self.max_tokens


class AskedOfGenerator(Config):
    """What one arm is to ask of the generator, and how it filters the answers."""

    operations: tuple[str, ...]
    prompt: PromptConfig
    filter: FilterConfig


class ImportSettings(StageSettings):
    """The generator as it came."""

    # To refuse early what later stages could not do: render prompts, and filter without a library.
    EXECUTION: ClassVar[frozenset[str]] = frozenset({"asked"})

    generator: GeneratorConfig
    asked: dict[str, AskedOfGenerator]
    """By arm, "" for a recipe that names none."""
    dtype: Dtype
    seed: int


class PretrainSettings(StageSettings):
    """Training to the plateau."""

    LATER: ClassVar[frozenset[str]] = frozenset({"organic", "questions"})

    model: ModelConfig
    pretrain: PretrainConfig
    references: dict[str, float]
    """Weights, by the names of the references' shards."""
    questions: tuple[str, ...] = ()
    """Shards of the held-out tasks whose questions are asked on the way."""
    organic: OrganicCurriculum | None = None
    dtype: Dtype
    seed: int


class ArmSettings(StageSettings):
    """Training on after the plateau."""

    LATER: ClassVar[frozenset[str]] = frozenset("train_from organic synthetic unique_tokens questions".split())

    model: ModelConfig
    pretrain: PretrainConfig
    """For as many steps as this arm takes, without a plateau; nothing is scored on the way."""
    references: dict[str, float]
    questions: tuple[str, ...] = ()
    continued: ContinueConfig | None
    """How synthetic text is mixed in; None where there is none."""
    train_from: WeightsOf = "raw"
    """The weights of `pretrain` or the arm before that it begins with."""
    organic: OrganicCurriculum | None = None
    synthetic: CurriculumConfig | None = None
    unique_tokens: int | None = None
    """Most tokens of an oracle's text."""
    dtype: Dtype
    seed: int


class ProbeSettings(StageSettings):
    """What helping the reference means for theta."""

    LATER: ClassVar[frozenset[str]] = frozenset({"separate_documents"})

    model: ModelConfig
    references: dict[str, float]
    probe: ProbeConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    global_batch: int
    mask_repetitions: bool
    separate_documents: bool = False
    dtype: Dtype
    seed: int


class SynthesisSettings(StageSettings):
    """What is asked of generators in one round, and what their answers earn."""

    operation: str
    prompt: PromptConfig

    reward: RewardConfig
    influence: EstimatorConfig
    dtype: Dtype
    seed: int
    round: int

    @property
    def own_reward(self) -> RewardConfig:
        """With the weights of this operation alone: what others are rewarded by need not be there."""
        return self.reward.weighing({self.operation: self.reward.weights(self.operation)})


class TuneSettings(SynthesisSettings):
    """Tuning of one operation's generator in one round."""

    tune: TuneConfig
    slices: SliceConfig


class GenerateSettings(SynthesisSettings):
    """Synthetic documents of one operation in one round."""

    generate: GenerateConfig
    """With this operation alone."""

    @property
    def own_reward(self) -> RewardConfig:
        """With the weights of what is measured."""
        weights = self.reward.weights(self.operation)
        measured = {name: weight for name, weight in weights.items() if self.generate.measures(name)}
        return self.reward.weighing({self.operation: measured}, self.reward.also)

    @property
    def measures_all(self) -> bool:
        """Whether all is measured that has a weight, so that there is a total."""
        return all(self.generate.measures(name) for name, w in self.reward.weights(self.operation).items() if w)


class ShardsSettings(StageSettings):
    """A round's synthetic documents as tokens."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"seed"})  # recorded by the stages that it is made from
    LATER: ClassVar[frozenset[str]] = frozenset({"megadocs"})

    filter: FilterConfig
    held_out: tuple[str, ...]
    """Shards of held-out text that must not stand in the documents; none where that is not looked for."""
    megadocs: MegadocConfig | None = None
    seed: int = 0

    def recorded(self) -> dict[str, Any]:
        """Nothing where nothing is filtered: so it was before there were filters, and such stages stay as they are."""
        return super().recorded() if self.filter.any or self.megadocs is not None else {}


class UniqueSettings(StageSettings):
    """Organic text from beyond what a run may see, for oracles."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"threads"})

    corpus: CorpusConfig
    max_tokens: int
    """As many as an arm can read, so that none is read twice where the corpus has them."""
    threads: int | None
    seed: int


class DecideSettings(StageSettings):
    """When no further round follows."""

    cycle: CycleConfig


class EvaluateSettings(StageSettings):
    """Measurements of the arms and of the texts."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"micro_batch"})
    LATER: ClassVar[frozenset[str]] = frozenset({"separate_documents"})

    held_out: tuple[str, ...]
    """Shards of held-out text by which the arms are told apart."""
    influence: EstimatorConfig
    seq_len: int
    separate_documents: bool = False
    micro_batch: int
    dtype: Dtype


class SettingsOf:
    """A recipe, dealt out to its stages. None learns its layout: it is handed its place in it, and saves none."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._seed = recipe, recipe.seed
        # Resolved, so that `auto` on another machine is a change of the stage where it means another type.
        self._dtype: Dtype = "bfloat16" if "bfloat16" in str(platform.resolve_dtype(recipe.dtype)) else "float32"

    @property
    def tokenize(self) -> TokenizeSettings:
        """Of `tokenize`."""
        recipe = self._recipe
        return TokenizeSettings(
            corpus=recipe.corpus,
            tokenizer=recipe.tokenizer,
            vocab_size=recipe.model.vocab_size,
            tasks=self._reference_files | self._held_out,
            seed=self._seed,
        )

    @property
    def _references(self) -> dict[str, float]:
        return {reference_shards(name, c.source): c.weight for name, c in self._recipe.references.items()}

    @property
    def _reference_files(self) -> dict[str, TaskConfig]:
        named = self._recipe.references.items()
        # Without the weight, which says nothing of tokens.
        fields = set(TaskConfig.model_fields)
        return {
            reference_shards(name, c.source): TaskConfig.model_validate(c.model_dump(include=fields))
            for name, c in named
            if c.source is not None
        }

    @property
    def _questions(self) -> tuple[str, ...]:
        return tuple(map(held_out_shards, self._recipe.asked)) if self._recipe.pretrain.tasks_every else ()

    @property
    def _held_out(self) -> dict[str, TaskConfig]:
        return {held_out_shards(name): config for name, config in self._recipe.held_out.items()}

    @property
    def references(self) -> TasksSettings | None:
        """Of `references`; None where none is read from files."""
        files = self._reference_files
        return self._tasks(files, held_out=("validation",), searched=tuple(files)) if files else None

    @property
    def held_out(self) -> TasksSettings | None:
        """Of `held-out`; None where there are no such tasks."""
        sets = self._held_out
        return self._tasks(sets, held_out=tuple(sets), searched=("train", *self._references)) if sets else None

    @property
    def asked(self) -> TasksSettings | None:
        """Of `asked`: the questions that are put to models while they train; None where there are none."""
        sets = {held_out_shards(name): self._recipe.held_out[name] for name in self._recipe.asked}
        return self._tasks(sets, held_out=(), searched=()) if sets else None

    def _tasks(
        self, sets: dict[str, TaskConfig], *, held_out: tuple[str, ...], searched: tuple[str, ...]
    ) -> TasksSettings:
        recipe = self._recipe
        return TasksSettings(
            sets=sets,
            max_tokens=recipe.corpus.max_held_out_tokens,
            seq_len=recipe.model.seq_len,
            held_out=held_out,
            searched=searched,
            seed=self._seed,
        )

    @property
    def generator(self) -> ImportSettings:
        """Of `import`."""
        recipe = self._recipe
        arms = {name: recipe.of_arm(name) for name, arm in recipe.arms.items() if arm.in_rounds} or {"": recipe}
        return ImportSettings(
            generator=recipe.generator.model_copy(update={"parallel": None}),
            asked={
                name: AskedOfGenerator(operations=own.generate.names, prompt=own.prompt, filter=own.filter)
                for name, own in arms.items()
            },
            dtype=self._dtype,
            seed=self._seed,
        )

    @property
    def pretrain(self) -> PretrainSettings:
        """Of `pretrain`."""
        recipe = self._recipe
        return PretrainSettings(
            model=recipe.model,
            pretrain=recipe.pretrain.model_copy(update={"parallel": None, "seed": None}),
            references=self._references,
            questions=self._questions,
            organic=recipe.mix.in_pretraining,
            dtype=self._dtype,
            seed=self._training_seed,
        )

    @property
    def _training_seed(self) -> int:
        seed = self._recipe.pretrain.seed
        return self._seed if seed is None else seed

    def arm(
        self,
        steps: int,
        *,
        synthetic: bool,
        rounds: bool = True,
        seed: int | None = None,
        unique_tokens: int | None = None,
    ) -> ArmSettings:
        """Of an arm of so many steps: pretraining's, a decaying schedule goes on where it was.

        synthetic: whether it reads anything beside organic text. rounds: whether it ends where `continued` says, if
        that is earlier. seed: another one than pretraining's. unique_tokens: the most of an oracle's text.
        """
        recipe = self._recipe
        # Without a plateau, so that all arms take as many steps and the comparison is of the text alone.
        plateau = recipe.continued.plateau if rounds else None
        ending = {"max_steps": steps, "plateau": plateau, "in_run": None, "parallel": None, "seed": None}
        pretrain = recipe.pretrain.model_copy(update=ending)
        continued = recipe.continued if synthetic else None
        return ArmSettings(
            model=recipe.model,
            pretrain=pretrain,
            references=self._references,
            questions=self._questions,
            continued=continued,
            train_from=recipe.continued.train_from,
            organic=recipe.mix.organic,
            synthetic=recipe.mix.synthetic if synthetic else None,
            unique_tokens=unique_tokens,
            dtype=self._dtype,
            seed=self._training_seed if seed is None else seed,
        )

    def unique(self, max_tokens: int) -> UniqueSettings:
        """Of `unique`."""
        recipe = self._recipe
        threads = recipe.tokenizer.threads
        return UniqueSettings(corpus=recipe.corpus, max_tokens=max_tokens, threads=threads, seed=self._seed)

    @property
    def decide(self) -> DecideSettings:
        """Of a round's `decide`."""
        return DecideSettings(cycle=self._recipe.cycle)

    @property
    def probe(self) -> ProbeSettings:
        """Of a round's probe."""
        recipe, training = self._recipe, self._recipe.pretrain
        return ProbeSettings(
            model=recipe.model,
            references=self._references,
            probe=recipe.probe,
            optimizer=training.optimizer,
            schedule=training.schedule,
            global_batch=training.global_batch,
            mask_repetitions=training.mask_repetitions,
            separate_documents=training.separate_documents,
            dtype=self._dtype,
            seed=self._seed,
        )

    def tune(self, operation: str, number: int) -> TuneSettings:
        """Of tuning `operation` in round `number`."""
        recipe = self._recipe
        # What chooses slices and nothing else of `generate`: changing how texts are sampled must not undo the tuning.
        slices = SliceConfig.model_validate(recipe.generate.model_dump(include=set(SliceConfig.model_fields)))
        tune = recipe.tune[operation]
        return TuneSettings(tune=tune, slices=slices, **self._synthesis(operation, number, without=tune.without))

    def generate(self, operation: str, number: int) -> GenerateSettings:
        """Of generation by `operation` in round `number`."""
        # One operation at a time: adding another to the recipe leaves the finished stages
        # of the first ones as they are.
        generate = self._recipe.generate.only(operation)
        return GenerateSettings(generate=generate, **self._synthesis(operation, number, self._recipe.asked_of_texts))

    def _synthesis(
        self, operation: str, number: int, also: Sequence[str] = (), without: Sequence[str] = ()
    ) -> dict[str, Any]:
        recipe = self._recipe
        weights = {name: recipe.reward.weights(name) for name in (*PAPER, operation)}
        weights[operation] = {name: weight for name, weight in weights[operation].items() if name not in without}
        reward = recipe.reward.weighing(weights, also)
        return {
            "operation": operation,
            "prompt": recipe.prompt,
            # Those of the paper's operations are recorded in every run that there is. Of the others this one's alone:
            # an operation that is added or weighted otherwise leaves the stages of the rest as they are.
            # So is it with questions of the user's own.
            "reward": reward.asking((*also, *recipe.reward.weights(operation))),
            "influence": recipe.influence,
            "dtype": self._dtype,
            "seed": self._seed,
            "round": number,
        }

    @property
    def shards(self) -> ShardsSettings:
        """Of a round's synthetic shards."""
        recipe = self._recipe
        held_out = (
            ("validation", *map(held_out_shards, recipe.held_out)) if recipe.filter.max_leaked is not None else ()
        )
        return ShardsSettings(filter=recipe.filter, held_out=held_out, megadocs=recipe.mix.megadocs, seed=self._seed)

    @property
    def evaluate(self) -> EvaluateSettings:
        """Of `evaluate`."""
        recipe = self._recipe
        return EvaluateSettings(
            held_out=("validation", *map(held_out_shards, recipe.held_out)),
            influence=recipe.influence,
            seq_len=recipe.model.seq_len,
            separate_documents=recipe.pretrain.separate_documents,
            micro_batch=recipe.pretrain.micro_batch,
            dtype=self._dtype,
        )
