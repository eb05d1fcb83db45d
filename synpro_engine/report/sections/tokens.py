"""Where every training token came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ArmTokens:
    """Training tokens that an arm saw after the plateau, repetitions counted each time."""

    name: str
    organic: int
    synthetic: int
    unique: int = 0  # of organic text beyond the corpus' own, as an oracle reads it
    stitched: int = 0  # of the organic ones, those within documents that are stitched of synthetic texts


@dataclass(frozen=True, kw_only=True)
class MadeTokens:
    """What one operation of one round made, and how much of it was trained on."""

    round: int
    operation: str
    tokens: int
    trained: int | None  # repetitions counted, over all rounds; None before an arm is finished


@dataclass(frozen=True, kw_only=True)
class TokenAccount:
    """Where the training tokens came from."""

    organic_unique: int
    pretrain_seen: int  # organic tokens trained on before the plateau, repetitions counted
    synthetic: Mapping[str, int] = field(default_factory=dict)  # tokens of the pool by operation
    arms: tuple[ArmTokens, ...] = ()
    made: tuple[MadeTokens, ...] = ()  # `synthetic` by round

    @property
    def most_trained(self) -> int:
        """Tokens of the longest training; at least 1."""
        return max(self.pretrain_seen, 1, *(arm.organic + arm.unique + arm.synthetic for arm in self.arms))

    @property
    def epochs_before_plateau(self) -> float | None:
        """How often pretraining went over the organic text."""
        return self.pretrain_seen / self.organic_unique if self.organic_unique else None
