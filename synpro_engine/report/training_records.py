"""What a report shows of training: losses, the plateau, where the tokens came from.

Plain frozen records; losses in nats per token. Knows no file, no model and no stage of the cycle.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from synpro_engine.evaluate import bits_per_byte

CurveKind = Literal["train", "reference", "validation"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A loss over training. `x` is in the unit that `ReportData.curve_unit` names and counts from the start of the
    whole run, so that an arm begins where pretraining ended. `loss` is pure cross-entropy in nats per token."""

    name: str
    kind: CurveKind
    x: tuple[float, ...]
    loss: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.x) == len(self.loss), f"curve {self.name}: {len(self.x)} x for {len(self.loss)} losses"


@dataclass(frozen=True, kw_only=True)
class PlateauInfo:
    """Where pretraining ended and why. `window_*` are the evaluations that the decision looked at, oldest first."""

    x: float  # in the curves' unit
    step: int
    stopped: bool  # False: the budget ended before the loss flattened
    reason: str
    window_steps: tuple[int, ...] = ()
    window_losses: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ArmTokens:
    """Training tokens that an arm saw after the plateau, repetitions counted each time."""

    name: str
    organic: int
    synthetic: int


@dataclass(frozen=True, kw_only=True)
class TokenAccount:
    """Where the training tokens came from."""

    organic_unique: int
    pretrain_seen: int  # organic tokens trained on before the plateau, repetitions counted
    synthetic: Mapping[str, int] = field(default_factory=dict)  # tokens of the pool by operation
    arms: tuple[ArmTokens, ...] = ()

    @property
    def epochs_before_plateau(self) -> float | None:
        """How often pretraining went over the organic text."""
        return self.pretrain_seen / self.organic_unique if self.organic_unique else None


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Cross-entropy of one model on text that no arm has seen. `nats` is the sum over `tokens` predicted tokens, which
    spell `utf8_bytes` bytes."""

    name: str
    nats: float
    tokens: int
    utf8_bytes: int
    documents: int | None = None

    @property
    def per_token(self) -> float | None:
        """Mean cross-entropy in nats per token; depends on the tokenizer."""
        return self.nats / self.tokens if self.tokens else None

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per UTF-8 byte; does not depend on the tokenizer."""
        return bits_per_byte(self.nats, self.utf8_bytes) if self.utf8_bytes else None
