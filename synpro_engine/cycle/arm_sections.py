"""Sections of a recipe about arms and rounds: what is compared with what, and when there is no further round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from synpro_engine.config import Config
from synpro_engine.config.recipes import merged
from synpro_engine.cycle.run_layout import REPETITION_ARM, SYNTHETIC_ARM
from synpro_engine.cycle.sections import MixConfig
from synpro_engine.reward import RewardConfig
from synpro_engine.reward.config import TOTAL, without_nulls
from synpro_engine.rl.config import TuneConfig
from synpro_engine.synth import FilterConfig, GenerateConfig

ArmText = Literal["organic", "unique", "prompted", "tuned"]


class ArmConfig(Config):
    """One way to train on from the plateau. Settings that are not given are the recipe's."""

    text: ArmText
    """What it reads beside the organic text. `organic`: nothing, which is repeated. `unique`: organic text from beyond
    `corpus.max_train_tokens`, an oracle. `prompted`: what generators write as they came. `tuned`: what they write once
    they are tuned."""
    influence: Literal["measured", "shuffled", "none"] = "measured"
    """What influence is to tuning: `measured`; `shuffled`, a placebo whose values change places within each group of
    completions; or `none`, which has no weight. Generation measures it all the same."""
    unique_tokens: int | None = Field(default=None, gt=0)
    """Of `text: unique`: the most of that text it has, in tokens, whole documents from the first on; what it reads
    beyond is read again. All that it can read where not given. Several such arms are points of a curve, by which the
    report says how many unique tokens the others are worth."""
    pretrain: dict[str, Any] = Field(default={})
    """Settings of `pretrain` that are others here, such as `{optimizer: {weight_decay: 1.0}}`."""
    probe: dict[str, Any] = Field(default={})
    """Likewise of `probe`."""
    reward: dict[str, Any] = Field(default={})
    """Likewise of `reward`."""
    prompt: dict[str, Any] = Field(default={})
    """Likewise of `prompt`."""
    tune: dict[str, Any] = Field(default={})
    """Likewise of `tune`; an operation that is null is only prompted."""
    generate: dict[str, Any] = Field(default={})
    """Likewise of `generate`."""
    filter: dict[str, Any] = Field(default={})
    """Likewise of `filter`."""
    mix: dict[str, Any] = Field(default={})
    """Likewise of `mix`."""
    continued: dict[str, Any] = Field(default={})
    """Likewise of `continued`. With `steps` an arm without rounds takes so many, and not as many as the longest of the
    others."""

    @property
    def in_rounds(self) -> bool:
        """Whether it trains on in rounds, on text that is made in each."""
        return self.text in ("prompted", "tuned")

    @property
    def given(self) -> dict[str, dict[str, Any]]:
        """The settings that are others here, by section."""
        return {name: value for name, value in self if isinstance(value, dict) and value}


DEFAULT_ARMS = {SYNTHETIC_ARM: ArmConfig(text="tuned"), REPETITION_ARM: ArmConfig(text="organic")}
"""Of a recipe that names none."""
_ONE_FOR_ALL = "max_steps global_batch plateau in_run parallel seed".split()
"""Settings of `pretrain` that make arms comparable, or say nothing of them."""


def with_arm(recipe: Mapping[str, Any], arm: ArmConfig) -> dict[str, Any]:
    """The plain settings of a recipe as an arm has them: without arms, and with its own settings in place."""
    # What a sweep found may be among what is another here.
    data = {**recipe, "arms": {}, "seeds": (), "tuned": None}
    data |= {section: merged(data[section], own) for section, own in arm.given.items()}
    # The recipe says all of its weights, so that a null takes away one of these and not of an operation's own.
    said = [name for name in recipe["reward"] if name not in RewardConfig.model_fields]
    data["reward"] = data["reward"] | {
        name: without_nulls(of) for name in said if isinstance(of := data["reward"][name], Mapping)
    }
    return data if arm.text == "tuned" else data | {"tune": {}}


def tuned_as(arm: ArmConfig, tune: Mapping[str, TuneConfig], reward: RewardConfig) -> dict[str, dict[str, Any]]:
    """The plain `tune` of an arm with what influence is to it, in operations that weigh it; {}: as it is."""
    key = {"measured": None, "shuffled": "shuffled", "none": "without"}[arm.influence]
    if key is None:
        return {}
    plain = {operation: one.model_dump() for operation, one in tune.items()}
    for operation, one in tune.items():
        # Where the other key has it the two together are refused: a placebo without a weight would be none.
        if reward.weights(operation).get("influence") and "influence" not in getattr(one, key):
            plain[operation][key] = (*getattr(one, key), "influence")
    return plain


def arm_fault(arm: ArmConfig) -> str | None:
    """What is wrong with an arm's settings by themselves, in words that begin with the key."""
    if arm.influence != "measured" and arm.text != "tuned":
        return f"influence: {arm.influence} is for `text: tuned`; nothing is tuned here"
    if arm.unique_tokens is not None and arm.text != "unique":
        return f"unique_tokens: is for `text: unique`; this arm reads {arm.text} text"
    for key in _ONE_FOR_ALL:
        if key in arm.pretrain:
            return f"pretrain.{key}: is one for all arms, so that they can be compared"
    if isinstance(optimizer := arm.pretrain.get("optimizer"), dict) and "name" in optimizer:
        return "pretrain.optimizer.name: an arm goes on with the moments of pretraining, which are of its optimizer"
    for operation, tune in arm.tune.items():
        if isinstance(tune, dict) and "algorithm" in tune:
            return f"tune.{operation}.algorithm: give the settings that it changes; the recipe's stand in their places"
    if not arm.in_rounds:
        for section in arm.given:
            if section not in ("pretrain", "mix", "continued"):
                return f"{section}: an arm on {arm.text} text generates nothing"
    return None


def placebo_fault(
    arm: ArmConfig, tune: Mapping[str, TuneConfig], filters: FilterConfig, generate: GenerateConfig, mix: MixConfig
) -> str | None:
    """What is wrong where influence is not measured for an arm's tuning, likewise; the sections are the arm's."""
    if arm.influence == "measured":
        return None
    if not any("influence" in (*one.shuffled, *one.without) for one in tune.values()):
        return f"influence: is {arm.influence}, but `reward` gives `influence` no weight in what is tuned"
    # A placebo whose texts were chosen by influence would be none.
    goes_by, synthetic = ("influence", TOTAL), mix.synthetic
    for key, chosen in (
        ("filter: {influence_quantile: null}", filters.influence_quantile is not None),
        ("filter: {least: {}}", "influence" in filters.least),
        ("filter: {best: null}", filters.best is not None and filters.best.by in goes_by),
        ("generate: {mixture: shares}", generate.mixture == "influence"),
        ("mix: {synthetic: null}", synthetic is not None and synthetic.wants_scores and synthetic.by in goes_by),
    ):
        if chosen:
            return f"influence: is {arm.influence}, but texts are chosen by it; give the arm `{key}`"
    return None


class CycleConfig(Config):
    """From one round to the next. Where none of the limits is given there are as many rounds as `rounds` says."""

    tune_from: Literal["last", "base"] = "last"
    """The generator that tuning begins with in later rounds: that of the round before, or the imported one."""
    min_gain: float | None = Field(default=None, ge=0, lt=1)
    """No further round follows one in which the reference loss fell by less than this share of itself."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Nor one with which an arm has trained on so many tokens, those of pretraining among them."""
    max_hours: float | None = Field(default=None, gt=0)
    """Nor one with which an arm's stages so far, and those that they were made from, took so many hours. Seeds beside
    the first do not count."""

    @property
    def decides(self) -> bool:
        """Whether a round may be the last before there are `rounds`."""
        return any(limit is not None for limit in (self.min_gain, self.max_tokens, self.max_hours))
