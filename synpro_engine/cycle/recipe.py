"""A recipe: every setting of a run, from the corpus to the last arm.

Each section is declared beside the code that uses it; this module only puts them together.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from synpro_engine.backend.platform import DtypeName
from synpro_engine.config import Config, UserError, apply_overrides, brief, json_text, nearest, read_yaml, validate
from synpro_engine.config.integrity import Verification
from synpro_engine.config.recipes import read_recipe, recipe_path
from synpro_engine.cycle.arm_files import judge_files, learnt_from
from synpro_engine.cycle.arm_sections import DEFAULT_ARMS, ArmConfig, CycleConfig, arm_fault, tuned_as, with_arm
from synpro_engine.cycle.run_layout import CONFIG, model_of, shares_sequences
from synpro_engine.cycle.sections import (
    IN_RUN,
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
from synpro_engine.reward import NO_JUDGES, RewardConfig
from synpro_engine.reward.config import TOTAL
from synpro_engine.reward.own import OwnReward
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.own_surrogate import load_surrogate
from synpro_engine.synth import BUILT_IN, FilterConfig, GenerateConfig, PromptConfig, load_operations, split_reference


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
    def _operations_are_generated_with(self) -> Recipe:
        for operation in self.tune:
            # Tuned and never used, it would cost hours: a slip in one of two lists.
            if operation not in self.generate.names:
                known = nearest(operation, self.generate.names)
                raise ValueError(f"tune.{operation}: is not among generate.operations{known}")
        return self

    @model_validator(mode="after")
    def _operations_have_their_weights(self) -> Recipe:
        # All of them, those of an operation's own too, so that a stored recipe says them without its file.
        names = self.generate.names
        for operation in names:
            if operation in RewardConfig.model_fields:  # its weights would stand in that one's place
                raise ValueError(f"generate.operations: `reward.{operation}` is a setting; give yours another name")
        for operation in self.reward.by_operation:
            if operation not in (*BUILT_IN, *names):
                raise ValueError(f"reward.{operation}: no such operation{nearest(operation, (*BUILT_IN, *names))}")
        weights = self.reward.by_operation | {name: self.reward.weights(name) for name in names}
        return self.model_copy(
            update={"reward": RewardConfig.model_validate(self.reward.weighing(weights).model_dump())}
        )

    @model_validator(mode="after")
    def _no_judge_ends_a_tuning(self) -> Recipe:
        for operation, config in self.tune.items():
            asked = [name for name in self.reward.asked if self.reward.weights(operation).get(name)]
            # Found out after hours otherwise: one reply that cannot be read would end it.
            if asked and config.bad_reward == "stop":
                raise ValueError(
                    f"tune.{operation}.bad_reward: must be drop_group, for reward.judges.{asked[0]} may fail to answer"
                )
        return self

    @model_validator(mode="after")
    def _canaries_have_judges(self) -> Recipe:
        for operation, config in self.tune.items():
            if config.judge_canary.every:
                weighed = [name for name, weight in self.reward.weights(operation).items() if weight]
                if fault := config.judge_canary.fault([name for name in weighed if name not in NO_JUDGES]):
                    raise ValueError(f"tune.{operation}.judge_canary.{fault}")
        return self

    @model_validator(mode="after")
    def _rewards_that_are_measured_have_a_weight(self) -> Recipe:
        names = self.generate.names
        weighed = {reward for name in names for reward, weight in self.reward.weights(name).items() if weight}
        weighed |= set(self.reward.unweighed)
        for reward in () if self.generate.rewards == "all" else self.generate.rewards:
            if reward not in weighed:
                raise ValueError(f"generate.rewards: no operation gives `{reward}` a weight{nearest(reward, weighed)}")
        return self

    @model_validator(mode="after")
    def _rewards_that_something_goes_by_are_there(self) -> Recipe:
        needed = {f"filter.{name}_quantile": name for name in self.filter.quantiles}
        needed |= {f"filter.least.{name}": name for name in self.filter.least}
        for name in self.filter.least:
            if name not in self.reward.names:
                raise ValueError(f"filter.least: no reward `{name}`{nearest(name, self.reward.names)}")
        best = None if self.filter.best is None else self.filter.best.by
        if best is not None and best != TOTAL:
            needed["filter.best.by"] = best
            if best not in self.reward.names:
                raise ValueError(f"filter.best.by: no reward `{best}`{nearest(best, self.reward.names)}")
        if self.generate.mixture == "influence":
            needed["generate.mixture"] = "influence"
        if self.mix.synthetic is not None and self.mix.synthetic.wants_scores:
            needed["mix.synthetic.by"] = self.mix.synthetic.by
        for key, reward in needed.items():
            for operation in self.generate.names:
                if reward not in self.reward.unweighed and not self.reward.weights(operation).get(reward):
                    raise ValueError(f"{key}: reward.{operation} gives `{reward}` no weight to go by")
            if not self.generate.measures(reward):
                raise ValueError(f"{key}: generate.rewards leaves `{reward}` out, which it goes by")
        return self

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
    def _there_are_questions_to_ask(self) -> Recipe:
        if self.pretrain.tasks_every and not any(tasks.choices_field for tasks in self.held_out.values()):
            raise ValueError(
                "pretrain.tasks_every: no set of `held_out` has a `choices_field`, so there is none to ask"
            )
        return self

    @model_validator(mode="after")
    def _the_split_that_is_used_has_text(self) -> Recipe:
        if self.corpus.split.reference == 0 and any(r.source is None for r in self.references.values()):
            raise ValueError("corpus.split.reference: is 0, but a reference without `source` is that split")
        return self

    @model_validator(mode="after")
    def _scores_that_the_mix_goes_by_are_made(self) -> Recipe:
        organic = self.mix.organic
        if organic is not None and organic.scores == IN_RUN:
            if self.pretrain.in_run is None:
                raise ValueError("mix.organic.scores: in_run are those of `pretrain.in_run`, which is not set")
            if organic.by != "influence":
                raise ValueError(f"mix.organic.by: in_run has scores `influence`, not `{organic.by}`")
        return self

    @model_validator(mode="after")
    def _the_mask_is_a_token(self) -> Recipe:
        dropout = self.pretrain.dropout
        if dropout.tokens and dropout.mask_token is not None and dropout.mask_token >= self.model.vocab_size:
            rows = f"model.vocab_size ({self.model.vocab_size})"
            raise ValueError(f"pretrain.dropout.mask_token: {dropout.mask_token} is not below {rows}")
        return self

    @model_validator(mode="after")
    def _influence_suits_the_probe(self) -> Recipe:
        far = self.influence.estimator in ("two_forward", "finite_difference") or self.influence.at == "midpoint"
        # These go to theta less the whole displacement; a gradient's length is none, and its scores
        # would be of an arbitrary step.
        if far and self.probe.kind == "next_step":
            wanted = f"influence.estimator {self.influence.estimator} at {self.influence.at}"
            raise ValueError(f"{wanted} wants probe.kind walk: a gradient is no displacement of the weights")
        try:
            self.influence.resolved(tangent=self.probe.kind == "next_step")
        except ValueError as error:
            raise ValueError(f"influence.{error}") from None
        return self

    @model_validator(mode="after")
    def _arms_begin_with_weights_that_are_kept(self) -> Recipe:
        wanted = self.continued.train_from
        if wanted not in ("raw", *self.pretrain.averages):
            raise ValueError(f"continued.train_from: pretrain.{wanted} is not given, so that there is none")
        return self

    @model_validator(mode="after")
    def _there_are_several_to_take_the_best_of(self) -> Recipe:
        best, made = self.filter.best, self.generate.samples
        if best is not None and best.keep >= made:
            raise ValueError(f"filter.best.keep: {best.keep} of each slice, of which generate.samples makes {made}")
        if best is not None and self.generate.join:
            raise ValueError("filter.best: compares texts of one slice, which generate.join puts together with others")
        if best is not None and best.by == TOTAL and self.generate.rewards != "all":
            raise ValueError("filter.best.by: without all of generate.rewards there is no total")
        return self

    @model_validator(mode="after")
    def _tuning_leaves_out_what_there_is(self) -> Recipe:
        for operation, config in self.tune.items():
            weighed = {name for name, weight in self.reward.weights(operation).items() if weight}
            for key, names in (("shuffled", config.shuffled), ("without", config.without)):
                for name in (name for name in names if name not in weighed):
                    known = nearest(name, weighed)
                    raise ValueError(f"tune.{operation}.{key}: reward.{operation} gives `{name}` no weight{known}")
            if weighed and weighed <= set(config.without):
                raise ValueError(f"tune.{operation}.without: no reward is left to tune by")
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
        if arm.influence == "measured":
            return None
        if not any("influence" in (*one.shuffled, *one.without) for one in own.tune.values()):
            return f"influence: is {arm.influence}, but `reward` gives `influence` no weight in what is tuned"
        # A placebo whose texts were chosen by influence would be none.
        best = own.filter.best is not None and own.filter.best.by in ("influence", TOTAL)
        synthetic = own.mix.synthetic
        mixed = synthetic is not None and synthetic.wants_scores and synthetic.by in ("influence", TOTAL)
        for key, goes in (
            ("filter: {influence_quantile: null}", own.filter.influence_quantile is not None),
            ("filter: {least: {}}", "influence" in own.filter.least),
            ("filter: {best: null}", best),
            ("generate: {mixture: shares}", own.generate.mixture == "influence"),
            ("mix: {synthetic: null}", mixed),
        ):
            if goes:
                return f"influence: is {arm.influence}, but texts are chosen by it; give the arm `{key}`"
        return None

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

    @model_validator(mode="after")
    def _a_walk_knows_the_moments(self) -> Recipe:
        optimizer = self.pretrain.optimizer.name
        if self.probe.kind == "walk" and self.probe.keep_momentum and optimizer != "adamw":
            because = f"a walk's steps are AdamW's, and pretrain.optimizer.name {optimizer} has no moments for them"
            raise ValueError(f"probe.keep_momentum: must be false with probe.kind walk, for {because}")
        return self


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or YAML file and set the overrides; UserError names file and key.

    The files of operations, rewards and surrogates that it names are run.
    """
    path, data = _read(recipe, overrides)
    # Here and nowhere else: a recipe that the user gives may name his own code, and one that is found may not.
    load_operations(_operations(data, path))
    found = validate(Recipe, data, str(path))
    for name, reference in found.reward.functions.items():
        OwnReward(name, reference)
    for operation, config in found.tune.items():
        load_surrogate(config.surrogate, f"tune.{operation}.surrogate")
    return found


def recipe_of_records(recipe: str, overrides: Sequence[str] = (), directory: Path | None = None) -> Recipe:
    """The same for what reads the run in `directory` and generates nothing.

    No operation's file is run, and none need be there. Weights that only the file would say are those that the run has
    stored.
    """
    path, data = _read(recipe, overrides)
    own = [name for name, file in map(split_reference, _operations(data, path)) if file is not None]
    given = data.get("reward", {})
    if own and isinstance(given, Mapping):
        stored: dict[str, Any] = {}
        with contextlib.suppress(UserError):  # whoever opens the run says that there is none
            stored = read_yaml((directory or Path("runs") / str(data.get("name"))) / CONFIG)["reward"]
        data["reward"] = {name: stored.get(name, {}) for name in own} | dict(given)
    return validate(Recipe, data, str(path))


def _read(recipe: str, overrides: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    path = recipe_path(recipe)
    return path, apply_overrides(read_recipe(path), overrides)


def _operations(data: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The operations that a recipe names, if it does so in the right form; else validation says what is wrong."""
    named = data.get("generate", {}).get("operations") if isinstance(data.get("generate"), Mapping) else None
    if not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        return ()
    names = {"operations": "generate.operations"}
    return validate(GenerateConfig, {"operations": named}, str(path), names=names).operations
