"""Settings of tuning a generator.

Defaults are SynPro's where the paper gives them (arXiv 2605.17849).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from synpro_engine.config import Config
from synpro_engine.sampler import SamplerConfig, SamplingConfig
from synpro_engine.train.config import OptimizerConfig, ScheduleConfig, SkipConfig

_OPTIMIZER = OptimizerConfig(lr=1e-6, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0)
_SAMPLING = SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=2048)


class GRPOConfig(Config):
    """One round of GRPO (Shao et al. 2024, arXiv 2402.03300) on one operation's generator."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset(
        # How work is cut, what is kept of it, when to give up: none of it reaches the numbers, so no stage is redone
        # for it.
        "micro_batch sampler skip checkpoint_every keep_checkpoints log_samples".split()
    )

    steps: int = Field(default=120, gt=0)
    """Rollout batches of the round."""
    prompts_per_step: int = Field(default=16, gt=0)
    """Source slices in one step, over all data-parallel ranks."""
    group_size: int = Field(default=8, ge=2)
    """Completions of each prompt; their rewards are compared with each other."""
    updates_per_rollout: int = Field(default=1, gt=0)
    """Optimizer steps on each rollout batch; beyond the first the ratio to the sampled policy is clipped."""
    micro_batch: int = Field(default=8, gt=0)
    """Completions that one rank forwards at once."""
    train_last_blocks: int | None = Field(default=None, gt=0)
    """Train only so many blocks from the top; all of the model when not given."""

    optimizer: OptimizerConfig = _OPTIMIZER
    """AdamW; `lr` is the peak."""
    warmup_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the optimizer steps over which the learning rate rises."""
    lr_floor: float = Field(default=0.1, ge=0.0, le=1.0)
    """The cosine ends at this fraction of the peak."""

    bad_reward: Literal["stop", "drop_group"] = "stop"
    """What follows a reward that is not finite or out of its range: `stop` ends tuning and names reward, source and
    completion; `drop_group` leaves the completions of that prompt out of the step, and counts them in the log."""
    skip: SkipConfig = SkipConfig()

    kl_beta: float = Field(default=0.005, ge=0.0)
    """Weight of the KL divergence (k3 estimate) from the reference policy; 0 does without one."""
    clip_low: float = Field(default=0.2, ge=0.0, lt=1.0)
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(default=0.2, ge=0.0)
    """The ratio is clipped above at 1 + clip_high."""
    aggregation: Literal["token", "sequence"] = "token"
    """`token`: mean over all tokens of the step; `sequence`: mean over completions of their token means."""
    normalisation: Literal["group", "per_reward"] = "group"
    """`group`: sum the weighted rewards, then compare within the group; `per_reward`: compare each reward within
    the group first, then sum (GDPO, arXiv 2601.05242), so that no reward rules by its scale."""
    std_normalisation: bool = True
    """Divide by the standard deviation within the group; without it, advantages keep the rewards' scale."""

    sampling: SamplingConfig = _SAMPLING
    """How completions are drawn; the trainer's log-probabilities are under this very distribution."""
    sampler: SamplerConfig = SamplerConfig()

    checkpoint_every: int = Field(default=20, ge=0)
    """Steps between checkpoints to resume from; 0 saves only at the end."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """Newest checkpoints kept."""
    log_samples: int = Field(default=2, ge=0)
    """Completions written down with source and rewards at each step."""

    @field_validator("sampling")
    @classmethod
    def _is_a_distribution(cls, value: SamplingConfig) -> SamplingConfig:
        if value.temperature == 0.0:
            raise ValueError("temperature must be above 0: greedy completions of a group are all the same")
        return value

    @property
    def schedule(self) -> ScheduleConfig:
        """Cosine over all optimizer steps, after the warm-up."""
        total = self.steps * self.updates_per_rollout
        # A cosine wants steps behind its warm-up, however short the run.
        warmup = min(round(self.warmup_fraction * total), total - 1)
        return ScheduleConfig(kind="cosine", warmup_steps=warmup, total_steps=total, floor=self.lr_floor)
