"""A recipe: every setting of a run, from the corpus to the last arm.

Each section is declared beside the code that uses it; this module puts them together, and has `rules` see whether they
go together. How one is read from a file is in `recipe_files.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import reduce
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from synpro_engine.backend.platform import DtypeName
from synpro_engine.config import Config, UserError, brief, json_text, validate
from synpro_engine.config.integrity import Verification
from synpro_engine.cycle import rules
from synpro_engine.cycle.arm_files import judge_files, learnt_from
from synpro_engine.cycle.arm_sections import (
    DEFAULT_ARMS,
    ArmConfig,
    CycleConfig,
    arm_fault,
    placebo_fault,
    tuned_as,
    with_arm,
)
from synpro_engine.cycle.run_layout import model_of, shares_sequences
from synpro_engine.cycle.sections import (
    ContinueConfig,
    CorpusConfig,
    EvaluateConfig,
    GeneratorConfig,
    MixConfig,
    PretrainConfig,
    ReferenceConfig,
    TaskConfig,
    TokenizerConfig,
    TunedConfig,
)
from synpro_engine.dist import Layout, LayoutConfig, ParallelConfig
from synpro_engine.influence import EstimatorConfig, ProbeConfig
from synpro_engine.model.config import ModelConfig
from synpro_engine.reward import RewardConfig
from synpro_engine.rl.config import TuneConfig
from synpro_engine.synth import FilterConfig, GenerateConfig, PromptConfig


class Recipe(Config):
    """All of a run. Sections carry the names that overrides use, as in `pretrain.optimizer.lr=3e-4`."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"name", "parallel", "verify", "tuned"})
    LATER: ClassVar[frozenset[str]] = frozenset({"seeds", "arms", "cycle"})

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=100)
    """Letters, digits and `._-`; the run's directory below `runs` unless --dir names one."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Decides splits, initial weights, data order and sampling."""
    parallel: ParallelConfig = ParallelConfig()
    verify: Verification = "once"
    """When the files of finished stages are compared with the hashes in their manifests: `once` after each change that
    shows in a file's size, times or inode, `always`, or `never`."""
    dtype: DtypeName = "auto"
    """Of the weights: `float32`, `bfloat16`, or `auto` (bfloat16 on a GPU)."""
    corpus: CorpusConfig = CorpusConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    references: dict[str, ReferenceConfig] = Field(default={"split": ReferenceConfig()}, min_length=1)
    """What help is measured by, by name: the reference split, tasks from files, or several with weights."""
    held_out: dict[str, TaskConfig] = Field(default={})
    """Tasks that the arms are measured on at last, beside the validation split, by name; nothing goes by them."""
    model: ModelConfig
    pretrain: PretrainConfig
    probe: ProbeConfig = ProbeConfig()
    influence: EstimatorConfig = EstimatorConfig()
    generator: GeneratorConfig = GeneratorConfig()
    rounds: int = Field(default=1, ge=1)
    """How often: probe, tune, generate, train on. With limits in `cycle` it is the most."""
    cycle: CycleConfig = CycleConfig()
    reward: RewardConfig = RewardConfig()
    prompt: PromptConfig = PromptConfig()
    tune: dict[str, TuneConfig] = Field(default={})
    """GRPO settings by operation; an operation of `generate` that is left out here is only prompted."""
    generate: GenerateConfig = GenerateConfig()
    filter: FilterConfig = FilterConfig()
    """Which of the texts that generation accepted are trained on; all of them, where nothing is set."""
    mix: MixConfig = MixConfig()
    continued: ContinueConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    arms: dict[str, ArmConfig] = Field(default={})
    """Ways to train on from the plateau, by name, which share all that they have in common. Without any there are two:
    `synthetic`, on what tuned generators write, and `repetition`, on organic text again."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = ()
    """Every arm is trained once with each of these, the first of which is pretraining's: they decide in which order it
    reads, and dropout. Theta, probes and synthetic text are those of the first. That alone where not given."""
    tuned: TunedConfig | None = None
    """Where settings were found by a sweep (`synpro sweep`): which, and how they compare."""

    def at(self, key: str) -> Any:
        """The setting under a dotted key."""
        return reduce(lambda at, name: at[name] if isinstance(at, Mapping) else getattr(at, name), key.split("."), self)

    @property
    def layouts(self) -> dict[str, LayoutConfig]:
        """By its key, each division of the ranks that this recipe asks for."""
        own = {"pretrain.parallel": self.pretrain.parallel, "generator.parallel": self.generator.parallel}
        return {"parallel": self.parallel} | {key: layout for key, layout in own.items() if layout is not None}

    def measured(self, operation: str) -> dict[str, float]:
        """The weights of the rewards that generation measures of an operation's texts."""
        weights = self.reward.weights(operation)
        return {name: weight for name, weight in weights.items() if weight and self.generate.measures(name)}

    @property
    def asked_of_texts(self) -> tuple[str, ...]:
        """Questions of the user's own that weigh nothing, which generation asks of its texts for filters."""
        return tuple(name for name in self.reward.unweighed if self.generate.measures(name))

    @property
    def all_arms(self) -> dict[str, ArmConfig]:
        """The arms, by name; of a recipe that names none the two that there are then."""
        return self.arms or DEFAULT_ARMS

    @property
    def several(self) -> bool:
        """Whether arms or seeds are named, so that each arm is measured by itself."""
        return bool(self.arms or self.seeds)

    @property
    def arm_seeds(self) -> tuple[int | None, ...]:
        """By which arms are trained; None for the recipe's own, which is the first."""
        return (None, *self.seeds[1:])

    @property
    def open_ended(self) -> bool:
        """Whether the number of rounds, or how long one is, shows only as they end."""
        until = (self.continued.plateau, *(arm.continued.get("plateau") for arm in self.arms.values()))
        return self.cycle.decides or any(plateau is not None for plateau in until)

    @property
    def most_unique_tokens(self) -> int:
        """That an oracle may read beside the training split; 0 where there is none."""
        in_rounds = [arm.continued for arm in self.all_arms.values() if arm.in_rounds] or [{}]
        others = max(own.get("steps", self.continued.steps) for own in in_rounds) * self.rounds
        window = self.pretrain.global_batch * self.model.seq_len
        oracles = [arm for arm in self.arms.values() if arm.text == "unique"]
        read = [(arm.continued.get("steps", others) * window, arm.unique_tokens) for arm in oracles]
        return max((most if own is None else min(most, own) for most, own in read), default=0)

    @property
    def asked(self) -> tuple[str, ...]:
        """Sets of `held_out` whose questions are asked in pretraining or in some arm."""
        every = (self.pretrain.tasks_every, *(arm.pretrain.get("tasks_every", 0) for arm in self.arms.values()))
        return tuple(name for name, tasks in self.held_out.items() if any(every) and tasks.choices_field is not None)

    def of_arm(self, name: str) -> Recipe:
        """The recipe as an arm has it, which names no arms itself; UserError where it would be none."""
        arm = self.all_arms[name]
        if self.arms:
            own = validate(Recipe, with_arm(self.model_dump(), arm), f"arms.{name}")
            changed = tuned_as(arm, own.tune, own.reward)
            return validate(Recipe, own.model_dump() | {"tune": changed}, f"arms.{name}") if changed else own
        return self if arm.text == "tuned" else self.model_copy(update={"tune": {}})

    def undivided(self) -> Recipe:
        """The same run, for what asks no model and so goes on any number of ranks."""
        pretrain = self.pretrain.model_copy(update={"parallel": None})
        generator = self.generator.model_copy(update={"parallel": None})
        parallel = ParallelConfig.model_validate(self.parallel.model_dump(exclude=set(LayoutConfig.model_fields)))
        return self.model_copy(update={"pretrain": pretrain, "generator": generator, "parallel": parallel})

    def layout_of(self, stage: str, ranks: int) -> Layout | None:
        """How so many ranks divide the models of a stage; None where it asks none. UserError where they cannot.

        Where no sequences are shared (`shares_sequences`), context-parallel ranks are data-parallel.
        """
        model = model_of(stage)
        if model is None:
            return None
        key = f"{model}.parallel" if f"{model}.parallel" in self.layouts else "parallel"
        layout = Layout.of(self.layouts[key], ranks, key)
        return layout if shares_sequences(stage) else layout.with_whole_sequences()

    @field_validator("references", "held_out", "tune", "arms", mode="before")
    @classmethod
    def _null_leaves_out(cls, value: Any) -> Any:
        # A file with a `base` is put together with it key by key, and could be rid of none of its names otherwise.
        return {name: one for name, one in value.items() if one is not None} if isinstance(value, Mapping) else value

    @field_validator("references", "held_out", "arms")
    @classmethod
    def _names_are_those_of_folders(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,60}", name):
                raise ValueError(f"`{name}`: names are letters, digits, `_` and `-`")
        return value

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("one is named twice")
        return value

    @field_validator("held_out")
    @classmethod
    def _held_out_tasks_come_from_files(cls, value: dict[str, TaskConfig]) -> dict[str, TaskConfig]:
        for name, tasks in value.items():
            if tasks.source is None:
                raise ValueError(f"{name}: `source` is missing; the validation split is measured in any case")
        return value

    @field_validator("references")
    @classmethod
    def _the_split_is_one_reference(cls, value: dict[str, ReferenceConfig]) -> dict[str, ReferenceConfig]:
        if sum(reference.source is None for reference in value.values()) > 1:
            raise ValueError("one without `source` is the reference split; there is only one")
        for name, reference in value.items():
            if reference.choices_field is not None:
                raise ValueError(
                    f"{name}.choices_field: is for `held_out`; of a reference the right answer alone counts"
                )
        return value

    @model_validator(mode="after")
    def _tuned_settings_are_set(self) -> Recipe:
        # The record would otherwise name settings that the run does not have.
        for key, found in () if self.tuned is None else self.tuned.settings.items():
            try:
                here = self.at(key)
            except (AttributeError, KeyError, TypeError):
                raise ValueError(f"tuned.settings: no setting `{key}`") from None
            if here != found:
                own = "with settings of your own give tuned=null"
                raise ValueError(f"{key}: is {brief(here)}, but `tuned` says that a sweep found {brief(found)}; {own}")
        return self

    @model_validator(mode="after")
    def _operations_have_their_weights(self) -> Recipe:
        # All of them, those of an operation's own too, so that a stored recipe says them without its file.
        names, reward = self.generate.names, self.reward
        rules.operations_that_are_tuned_are_generated_with(self.tune, self.generate)
        rules.rewards_of_operations_that_there_are(reward, names)
        weights = reward.by_operation | {name: reward.weights(name) for name in names}
        return self.model_copy(update={"reward": RewardConfig.model_validate(reward.weighing(weights).model_dump())})

    @model_validator(mode="after")
    def _texts_are_chosen_by_rewards_that_there_are(self) -> Recipe:
        tune, reward, generate, filters = self.tune, self.reward, self.generate, self.filter
        rules.there_is_a_reward_to_tune_by(tune, reward)
        rules.no_judge_ends_a_tuning(tune, reward)
        rules.canaries_have_judges(tune, reward)
        rules.rewards_that_are_measured_have_a_weight(generate, reward)
        rules.rewards_that_texts_are_chosen_by_are_there(filters, generate, self.mix, reward)
        rules.there_are_several_to_take_the_best_of(filters, generate)
        rules.tuning_leaves_out_what_there_is(tune, reward)
        return self

    @model_validator(mode="after")
    def _pretraining_makes_what_is_gone_on_from(self) -> Recipe:
        pretrain = self.pretrain
        rules.there_are_questions_to_ask(pretrain, self.held_out)
        rules.the_split_that_is_used_has_text(self.corpus, self.references)
        rules.scores_that_the_mix_goes_by_are_made(self.mix, pretrain)
        rules.the_mask_is_a_token(pretrain, self.model.vocab_size)
        rules.layers_that_wait_are_there(pretrain, self.model.layers)
        rules.influence_suits_the_probe(self.influence, self.probe)
        rules.arms_begin_with_weights_that_are_kept(self.continued, pretrain)
        return self

    @model_validator(mode="after")
    def _seeds_begin_with_the_recipes(self) -> Recipe:
        key, first = ("seed", self.seed) if self.pretrain.seed is None else ("pretrain.seed", self.pretrain.seed)
        if self.seeds and self.seeds[0] != first:
            raise ValueError(f"seeds: must begin with `{key}` ({first}), whose theta all arms go on from")
        return self

    @model_validator(mode="after")
    def _arms_can_be_made(self) -> Recipe:
        for name, arm in self.arms.items():
            fault = arm_fault(arm)
            if fault is None:
                try:
                    fault = self._fault_of(arm, self.of_arm(name))
                except UserError as error:
                    raise ValueError(str(error)) from None
            if fault is not None:
                raise ValueError(f"arms.{name}.{fault}")
        return self

    def _fault_of(self, arm: ArmConfig, own: Recipe) -> str | None:
        if arm.text == "tuned" and not own.tune:
            return "text: is tuned, but `tune` names no operation"
        if arm.text == "unique" and self.corpus.max_train_tokens is None:
            return "text: without `corpus.max_train_tokens` all of the text is the training split's, and none is unique"
        if self.mix.in_pretraining is not None and own.mix.organic != self.mix.organic:
            return "mix.organic: is read in pretraining, whose place in the text arms go on from; it is one for all"
        # Theta is pretraining's, and keeps what the recipe says, whatever the arm's own stages keep.
        wanted = own.continued.train_from
        if wanted not in ("raw", *self.pretrain.averages):
            return f"continued.train_from: the recipe's pretrain.{wanted} is not given, so that theta has none"
        return placebo_fault(arm, own.tune, own.filter, own.generate, own.mix)

    @model_validator(mode="after")
    def _arms_differ(self) -> Recipe:
        seen: dict[str, str] = {}
        for name, arm in self.arms.items():
            own = self.of_arm(name)
            keys = (*learnt_from(own.pretrain, own.mix), *judge_files(own.reward))
            # What is recorded by its content is told apart by its place here, where nothing is read.
            alike = json_text([arm.text, arm.unique_tokens, own.recorded(), {key: own.at(key) for key in keys}])
            if alike in seen:
                raise ValueError(f"arms.{name}: is the same as arms.{seen[alike]}")
            seen[alike] = name
        return self
