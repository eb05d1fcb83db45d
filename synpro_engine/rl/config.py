"""Settings of tuning a generator.

Defaults are SynPro's where the paper gives them (arXiv 2605.17849). `algorithm` names a published method, whose
settings (`PRESETS`) then take the place of the defaults; each can still be given by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from synpro_engine.config import Config, nearest
from synpro_engine.config.own_code import own_reference
from synpro_engine.sampler import SamplerConfig, SamplingConfig
from synpro_engine.train.config import SkipConfig
from synpro_engine.train.optimizer_config import OptimizerConfig, ScheduleConfig

_OPTIMIZER = OptimizerConfig(lr=1e-6, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0)
_CRITICS = _OPTIMIZER.model_copy(update={"lr": 1e-5})
_SAMPLING = SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=2048)

SURROGATE_NAMES = ("clip", "gspo", "cispo", "reinforce")
Algorithm = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "ppo"]
PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"scale": "none", "aggregation": "constant", "kl_beta": 0.0},
    "dapo": {"clip_high": 0.28, "kl_beta": 0.0, "refills": 3, "overlong": {}},
    "gspo": {
        "surrogate": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "sequence", "kl_beta": 0.0,
    },
    "cispo": {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 4.0, "kl_beta": 0.0},
    "rloo": {"baseline": "leave_one_out", "scale": "none", "aggregation": "constant", "kl": "k1", "kl_in": "reward"},
    "reinforce_pp": {"baseline": "batch", "scale": "batch", "kl": "k1", "kl_in": "reward"},
    "ppo": {"baseline": "critic", "scale": "batch", "kl": "k1", "kl_in": "reward", "critic": {}, "minibatches": 4},
}  # fmt: skip
"""What each published method changes: Shao et al. 2024 (arXiv 2402.03300), Dr. GRPO (2503.20783), DAPO (2503.14476),
GSPO (2507.18071), CISPO (2506.13585), RLOO (2402.14740), REINFORCE++ (2501.03262), PPO (1707.06347)."""


def _completed(given: Any, whole: OptimizerConfig) -> Any:
    """Settings of an optimizer with tuning's in place of what is left out, which would be pretraining's."""
    return {**whole.model_dump(), **given} if isinstance(given, Mapping) else given


class OverlongConfig(Config):
    """DAPO's soft punishment of long completions (arXiv 2503.14476, eq. 13), added to the reward.

    0 up to a completion's limit less `buffer`, from there linear down to -penalty at the limit: `max_new_tokens`, or
    fewer where `max_new_ratio` or the generator's context ends it.
    """

    buffer: float = Field(default=0.2, gt=0.0, le=1.0)
    """The last tokens, as a share of the limit, over which the punishment grows."""
    penalty: float = Field(default=1.0, gt=0.0)
    """In units of the summed reward."""


class ImportanceConfig(Config):
    """Correction where the sampler's probabilities are not the trainer's (stale or quantised weights).

    The trainer forwards each rollout once before it learns; ratios are to its own probabilities then, and a token's
    gain is multiplied by trainer's over sampler's probability, held at `cap` or, beyond it, rejected.
    """

    cap: float = Field(default=2.0, gt=1.0)
    level: Literal["token", "sequence"] = "token"
    """`sequence`: the ratio of the whole completion, for all of its tokens."""
    beyond: Literal["truncate", "reject"] = "truncate"
    """`reject`: tokens whose ratio is above `cap` or below 1 / cap teach nothing (of a sequence, all of them)."""


class LoraConfig(Config):
    """Low-rank adapters (arXiv 2106.09685) that train in place of the blocks' matrices.

    The reference policy is the generator without them, so nothing is copied; they end merged into the tuned weights,
    and beside these in PEFT's form. They want a rate some ten to a hundred times that of the matrices themselves.
    """

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0.0)
    """What an adapter makes is multiplied by alpha / rank."""
    seed: int = 0
    """Of the first values."""


class CriticConfig(Config):
    """A model that foretells the reward at each token: the generator's shape and weights, with a head for values."""

    optimizer: OptimizerConfig = _CRITICS
    train_last_blocks: int | None = Field(default=None, gt=0)
    """Train only so many blocks from the top and the value head; all of it when not given."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps at the start in which the critic alone learns."""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """Discount of a token's future."""
    gae_lambda: float = Field(default=0.95, ge=0.0, le=1.0)
    """Generalised advantage estimation (arXiv 1506.02438): 1 is the return less the value, 0 one step ahead."""
    clip: float | None = Field(default=0.2, gt=0.0)
    """Values are held so near to those of the rollout (PPO's value clipping); None does without."""

    @field_validator("optimizer", mode="before")
    @classmethod
    def _completes_the_optimizer(cls, value: Any) -> Any:
        return _completed(value, _CRITICS)


class CanaryConfig(Config):
    """A look at the judges on what the generator writes by then: completions against themselves with a fault planted.

    A judge is attacked by what it trains: its reward may rise because it is deceived.
    """

    every: int = Field(default=0, ge=0)
    """Steps from one look to the next, the first step's and the last's among them; 0 does without."""
    texts: int = Field(default=8, gt=0)
    """Completions of a step that faults are planted in, over all ranks; each costs a judgement for each kind."""
    least: dict[str, Annotated[float, Field(ge=0.0, le=1.0)]] = Field(default={})
    """By judge, the share of completions that it must rate above themselves with a fault; 0.5 is chance."""
    below: Literal["warn", "stop"] = "warn"
    """What follows below it: a line, or the end of tuning, which can go on from a checkpoint of that very step."""

    @model_validator(mode="after")
    def _looks(self) -> CanaryConfig:
        if self.least and not self.every:
            raise ValueError("least: nothing is looked at without `every`")
        return self

    def fault(self, judges: Collection[str]) -> str:
        """What is wrong with it where these are the judges that have a weight, in words; "" where nothing is."""
        if not judges:
            return "every: no reward of the operation is a judge's, so there is nothing to look at"
        unknown = [name for name in self.least if name not in judges]
        return f"least: no judge `{unknown[0]}` has a weight here{nearest(unknown[0], judges)}" if unknown else ""


class HeldOutConfig(Config):
    """The reward on slices of validation documents, which never train, drawn by the same random numbers each time.

    It is measured before the first step, on the way and after the last, and shows what tuning does: a step's own reward
    hops with the slices that the step has.
    """

    every: int = Field(default=0, ge=0)
    """Steps from one measurement of the rewards on slices that do not train to the next, beside those before the first
    step and after the last; 0 does without."""
    slices: int = Field(default=32, ge=2)
    """Slices of validation documents that are measured, over all ranks; intervals are over them."""
    members: int = Field(default=2, gt=0)
    """Completions of each slice, by the same random numbers each time."""
    facts: int = Field(default=4, ge=0)
    """Slices of them that are rewritten once more with a number, a name and a date planted in each, to see which of
    these a rewriting keeps; 0 does without."""

    def due(self, steps: int) -> list[int]:
        """Steps that are done at each measurement of a tuning of so many."""
        return sorted({*range(0, steps, self.every), steps}) if self.every else []


class TuneConfig(Config):
    """One round of tuning one operation's generator: GRPO and its kin, or PPO."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset(
        # How work is cut, what is kept of it, when to give up: none of it reaches the numbers, so no stage is redone
        # for it.
        "micro_batch sampler residency skip checkpoint_every keep_checkpoints log_samples judge_canary held_out".split()
    )
    LATER: ClassVar[frozenset[str]] = frozenset({"shuffled", "without"})

    algorithm: Algorithm = "grpo"
    """Whose settings take the place of the defaults below; what is given beside it counts. `grpo` takes the mean over
    tokens, as DAPO does; its paper's is `aggregation: sequence`."""
    steps: int = Field(default=120, gt=0)
    """Rollout batches of the round."""
    prompts_per_step: int = Field(default=16, gt=0)
    """Source slices in one step, over all data-parallel ranks."""
    group_size: int = Field(default=8, ge=1)
    """Completions of each prompt; their rewards are compared with each other."""
    updates_per_rollout: int = Field(default=1, gt=0)
    """Times each rollout batch is gone through; behind the first update the ratio to the sampled policy is clipped."""
    minibatches: int = Field(default=1, gt=0)
    """Optimizer steps of each time: the completions of a rank are dealt out to so many."""
    micro_batch: int = Field(default=8, gt=0)
    """Completions that one rank forwards at once."""
    train_last_blocks: int | None = Field(default=None, gt=0)
    """Train only so many blocks from the top; all of the model when not given."""
    lora: LoraConfig | None = None
    """Train adapters on these blocks in place of their weights; embedding, norms and output layer are frozen too."""

    optimizer: OptimizerConfig = _OPTIMIZER
    """AdamW, or Muon for matrices of blocks (not with `lora`, whose adapters are none); `lr` is AdamW's peak and
    `muon.lr` Muon's."""
    warmup_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the optimizer steps over which the learning rate rises."""
    lr_floor: float = Field(default=0.1, ge=0.0, le=1.0)
    """The cosine ends at this fraction of the peak."""

    bad_reward: Literal["stop", "drop_group"] = "stop"
    """What follows a reward that is not finite or out of its range: `stop` ends tuning and names reward, source and
    completion; `drop_group` leaves the completions of that prompt out of the step, and counts them in the log."""
    skip: SkipConfig = SkipConfig()

    surrogate: str = "clip"
    """What is maximised: `clip` (PPO, GRPO), `gspo` (ratios of whole completions), `cispo` (the ratio is held, and no
    token loses its gradient), `reinforce` (no ratio), or your own: `path/to/file.py:NAME`, a function of (logprob [N],
    `synpro_kernels.PolicyTokens`, `PolicyObjective`) to a `Gain`."""
    clip_low: float = Field(default=0.2, ge=0.0, le=1.0)
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(default=0.2, ge=0.0)
    """The ratio is clipped above at 1 + clip_high."""
    dual_clip: float | None = Field(default=None, gt=1.0)
    """Where the advantage is negative, the gain is not let below so many times it (arXiv 1912.09729)."""
    kl_beta: float = Field(default=0.005, ge=0.0)
    """Weight of the KL divergence from the reference policy; 0 does without one. With `top_p`, `top_k` or `min_p` it is
    among the ids that sampling left alone: what moves outside of them, or where one id was left, costs nothing."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Its estimate at a token, of d = log p - log p_ref: d, d^2 / 2, or exp(-d) - 1 + d."""
    kl_in: Literal["loss", "reward"] = "loss"
    """`reward`: taken off the rewards before they are compared (a completion's sum; a token's own with `batch` and
    `critic`)."""
    entropy_bonus: float = Field(default=0.0, ge=0.0)
    """Weight of the policy's entropy, in nats a token, that is added to the gain."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """`token`: mean over all tokens of the update, as DAPO; `sequence`: mean over completions of their token means, as
    GRPO's paper (arXiv 2402.03300, eq. 3) and GSPO; `constant`: sum over tokens, over the completions' number times
    `max_new_tokens` (Dr. GRPO), so that length has no weight."""
    baseline: Literal["group", "leave_one_out", "batch", "critic"] = "group"
    """What a reward is compared with: its group's mean; that of the others in it (RLOO); that of the step's tokens
    (REINFORCE++); what a critic foretold at each token (PPO)."""
    scale: Literal["group", "batch", "none"] = "group"
    """Standard deviation that advantages are divided by: of the group's rewards, of the step's advantages, or none."""
    std_divisor: Literal["n", "n-1"] = "n"
    """Of that deviation. `n` is GRPO's formula; TRL and verl divide by n - 1, which makes advantages of a group of 8
    smaller by a fifteenth."""
    normalisation: Literal["group", "per_reward"] = "group"
    """`group`: sum the weighted rewards, then compare; `per_reward`: compare each reward within the group first, then
    sum (GDPO, arXiv 2601.05242), so that no reward rules by its scale."""
    shuffled: tuple[str, ...] = ()
    """Rewards whose values change places among the accepted completions of each group before they are compared: a
    placebo, which has their distribution and knows nothing of the texts. For baselines within the group alone: across
    prompts the mean of a group would teach all the same."""
    without: tuple[str, ...] = ()
    """Rewards that have no weight in tuning, though generation measures them."""
    mask_truncated: bool = False
    """Learn nothing from completions that `max_new_tokens` cut off. Others are compared with them all the same, but for
    `baseline: critic`, which never learns what they earn."""
    overlong: OverlongConfig | None = None
    refills: int = Field(default=0, ge=0)
    """How often groups without a signal (all rewards alike) are replaced by those of other slices in a step (DAPO's
    dynamic sampling, bounded)."""
    importance: ImportanceConfig | None = None
    critic: CriticConfig | None = None

    sampling: SamplingConfig = _SAMPLING
    """How completions are drawn; the trainer's log-probabilities are under this very distribution."""
    sampler: SamplerConfig = SamplerConfig()
    residency: Literal["resident", "parked"] = "resident"
    """Where models that are only read (reference policy, what influence and quality ask, judges in the job) are in
    phases of a step that do not need them: on the device, or `parked` in pinned memory of the host, from which they are
    copied each time. What trains stays. For GPUs; on a CPU it moves as much and saves nothing."""

    judge_canary: CanaryConfig = CanaryConfig()
    held_out: HeldOutConfig = HeldOutConfig()

    checkpoint_every: int = Field(default=20, ge=0)
    """Steps between checkpoints to resume from; 0 saves only at the end."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """Newest checkpoints kept."""
    log_samples: int = Field(default=2, ge=0)
    """Completions written down with source and rewards at each step."""

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        # An unknown name is left to the field, whose message lists the known ones.
        return {**PRESETS.get(str(given.get("algorithm", "grpo")), {}), **given}

    @field_validator("optimizer", mode="before")
    @classmethod
    def _completes_the_optimizer(cls, value: Any) -> Any:
        return _completed(value, _OPTIMIZER)

    @field_validator("sampling")
    @classmethod
    def _is_a_distribution(cls, value: SamplingConfig) -> SamplingConfig:
        if value.temperature == 0.0:
            raise ValueError("temperature must be above 0: greedy completions of a group are all the same")
        return value

    @field_validator("surrogate")
    @classmethod
    def _surrogate_is_there(cls, value: str) -> str:
        if value not in SURROGATE_NAMES and own_reference(value) is None:
            raise ValueError(
                f"no surrogate `{value}`{nearest(value, SURROGATE_NAMES)}; your own is path/to/file.py:NAME"
            )
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> TuneConfig:
        within_group = self.baseline in ("group", "leave_one_out")
        updates = self.updates_per_rollout * self.minibatches
        both = [name for name in self.shuffled if name in self.without]
        for wrong, message in (
            (within_group and self.group_size < 2, f"group_size: baseline {self.baseline} compares at least 2"),
            (not within_group and self.scale == "group", f"scale: baseline {self.baseline} has no groups to scale by"),
            (
                self.kl == "k1" and self.kl_in == "loss" and self.kl_beta > 0.0,
                "kl: the gradient of k1 in the loss is 0 on average; take k2 or k3, or kl_in: reward",
            ),
            (
                self.surrogate == "reinforce" and updates > 1,
                "surrogate: reinforce has no ratio, so only the first update on a rollout would be right",
            ),
            (
                self.dual_clip is not None and self.surrogate in ("cispo", "reinforce"),
                f"dual_clip: {self.surrogate} has no clip to add it to",
            ),
            (
                self.normalisation == "per_reward" and self.baseline != "group",
                "normalisation: per_reward compares within groups, so it wants baseline: group",
            ),
            (
                self.normalisation == "per_reward" and self.kl_in == "reward" and self.kl_beta > 0.0,
                "normalisation: per_reward compares each reward alone, and the KL in the reward is none of them",
            ),
            (
                self.normalisation == "per_reward" and self.scale == "batch",
                "normalisation: per_reward scales by each group's deviation or not at all: scale group or none",
            ),
            (
                self.critic is not None and self.critic.warmup_steps >= self.steps,
                f"critic.warmup_steps: leaves the policy none of {self.steps} steps",
            ),
            (
                self.lora is not None and self.optimizer.name == "muon",
                "optimizer.name: muon moves matrices of blocks, and with lora adapters train instead; take adamw",
            ),
            ((self.baseline == "critic") != (self.critic is not None), "critic: is there with baseline: critic alone"),
            (
                bool(self.shuffled) and not within_group,
                f"shuffled: wants baseline group or leave_one_out; with {self.baseline} a group's mean still teaches",
            ),
            (bool(both), f"shuffled: `{', '.join(both)}` is in `without` too, and has no weight to be shuffled"),
            (self.refills > 0 and not within_group, "refills: only groups that are compared can be without a signal"),
        ):
            if wrong:
                raise ValueError(message)
        return self

    @property
    def schedule(self) -> ScheduleConfig:
        """Cosine over all optimizer steps of the policy, after the warm-up."""
        return self.schedule_of(self.steps - (0 if self.critic is None else self.critic.warmup_steps))

    def schedule_of(self, steps: int) -> ScheduleConfig:
        """The same over the optimizer steps of `steps` rollout batches."""
        total = steps * self.updates_per_rollout * self.minibatches
        # A cosine wants steps behind its warm-up, however short the run.
        warmup = min(round(self.warmup_fraction * total), total - 1)
        return ScheduleConfig(kind="cosine", warmup_steps=warmup, total_steps=total, floor=self.lr_floor)
