"""What a run of pretraining remembers between checkpoints, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """How a run ended. `tokens` were trained on in this run; losses are nats per token at its end, by set.

    `plateau` is true only where the loss stopped improving, not where a limit of steps or tokens ended the run.
    `skipped`: steps that changed nothing, for loss or gradient was not finite, or a spike.
    """

    step: int
    tokens: int
    losses: dict[str, float]
    plateau: bool
    reason: str
    skipped: int
    checkpoint: Path


@dataclass(kw_only=True)
class RunProgress:
    """What a checkpoint must carry besides weights, optimizer and data position."""

    first_step: int = 0
    tokens: int = 0
    evaluated_at: int = -1
    losses: dict[str, float] = field(default_factory=dict)
    asked_at: int = -1  # the step at which questions were last put to the model
    plateau: bool = False
    budget: bool = False  # the detector's limit of steps or tokens is reached
    reason: str = ""

    @property
    def stopped(self) -> bool:
        """Whether the detector ended the run."""
        return self.plateau or self.budget

    def finished(self, step: int, max_steps: int) -> bool:
        """Whether there is nothing left to train behind this step."""
        return self.stopped or step - self.first_step >= max_steps
