"""Settings of rewards: weights by operation, what a reward can be told, and who measures it."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from synpro_engine.config import Config, UserError, nearest
from synpro_engine.reward.judges import JudgeConfig, JudgesConfig

REWARD_NAMES = (
    "influence", "quality", "similarity", "structure", "length", "format", "faithfulness", "anti_copy",
)  # fmt: skip
_REPHRASE_WEIGHTS = {
    "influence": 3.0, "quality": 1.0, "similarity": 1.0, "structure": 1.0, "length": 1.0, "format": 1.0,
    "anti_copy": 1.0,
}  # fmt: skip
_REFORMAT_WEIGHTS = {"influence": 3.0, "quality": 1.0, "faithfulness": 1.0, "format": 1.0, "anti_copy": 1.0}


Weight = Annotated[float, Field(ge=-1e6, le=1e6)]


class RewardConfig(Config):
    """Weights by reward name for each operation, and what the rewards can be told. Names left out weigh 0."""

    rephrase: dict[str, Weight] = Field(default=_REPHRASE_WEIGHTS)
    """The paper's weights, and an anti-copy term that small generators need."""
    reformat: dict[str, Weight] = Field(default=_REFORMAT_WEIGHTS)
    """The same for entries."""
    influence_min_chars: int = Field(default=500, ge=0)
    """Texts with fewer characters have the influence of their source."""
    influence_clip: float | None = Field(default=None, gt=0)
    """Bound on the absolute influence difference, in nats per token; none for no bound."""
    quality_low: float = Field(default=1.5, ge=0)
    """Nats per token below which a text counts as too predictable."""
    quality_high: float = Field(default=3.7, gt=0)
    """Nats per token above which a text counts as garbled."""
    similarity_threshold: float | None = Field(default=0.65, ge=0, le=1)
    """The similarity reward is 1 above it; none gives the graded score instead."""
    faithfulness_judge: str | None = Field(default=None, min_length=1)
    """A file of `synpro train-judge`; none takes the judge that the package brings."""
    faithfulness_threshold: float | None = Field(default=None, ge=0, le=1)
    """An entry counts 1 whose probability of being supported reaches it, else 0; none gives the mean probability."""
    judges: JudgesConfig = JudgesConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for operation in ("rephrase", "reformat"):
            for name in self.weights(operation):
                if name not in REWARD_NAMES:
                    raise ValueError(f"{operation}: no reward `{name}`{nearest(name, REWARD_NAMES)}")
        if self.quality_low >= self.quality_high:
            raise ValueError("quality_low must be below quality_high")
        return self

    def weights(self, operation: str) -> dict[str, float]:
        """The weights of one operation."""
        by_operation = {"rephrase": self.rephrase, "reformat": self.reformat}
        if operation not in by_operation:
            raise UserError(f"`reward`: no weights for operation `{operation}`{nearest(operation, by_operation)}")
        return by_operation[operation]

    def uses(self, name: str) -> bool:
        """Whether any operation gives `name` a weight."""
        return any(weights.get(name, 0.0) != 0.0 for weights in (self.rephrase, self.reformat))

    @property
    def remote(self) -> dict[str, JudgeConfig]:
        """The judges behind endpoints whose rewards have a weight, by the reward's name."""
        return {name: judge for name, judge in self.judges.remote.items() if self.uses(name)}

    def measures(self, name: str) -> bool:
        """Whether `name` has a weight and is measured here, in the embedded way."""
        return self.uses(name) and name not in self.remote
