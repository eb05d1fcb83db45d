"""The settings of each kind of stage."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from synpro_engine.config import Config
from synpro_engine.cycle.arm_sections import CycleConfig
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
from synpro_engine.synth import FilterConfig, GenerateConfig, MegadocConfig, PromptConfig, SliceConfig
from synpro_engine.train.config import WeightsOf
from synpro_engine.train.optimizer_config import OptimizerConfig, ScheduleConfig

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
