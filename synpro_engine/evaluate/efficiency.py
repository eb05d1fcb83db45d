"""Data efficiency: for how many unique tokens a plain recipe has the same loss, over those that there were.

The rule of NanoGPT Slowrun: tokens are linear in the loss between two points of the plain recipe's table, and beyond
its ends nothing is said but on which side a loss lies.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from synpro_engine.config import Config


class EfficiencyConfig(Config):
    """Losses of a plain recipe by the unique tokens that it had, on the same text and with the same tokenizer."""

    table: tuple[tuple[float, float], ...] = Field(min_length=2)
    """Pairs of tokens and loss (nats per token), tokens upwards and losses downwards."""
    unique_tokens: int | None = Field(default=None, gt=0)
    """Of this run; the tokens of its training split where not given."""

    @model_validator(mode="after")
    def _is_a_curve(self) -> EfficiencyConfig:
        for (fewer, worse), (more, better) in itertools.pairwise(self.table):
            if not 0 < fewer < more or not worse > better > 0:
                raise ValueError(
                    f"table: tokens must go up and losses down, not from {fewer:g}, {worse} to {more:g}, {better}"
                )
        return self


@dataclass(frozen=True)
class Efficiency:
    """A multiple of the unique tokens, or the side of the table on which a loss lies."""

    multiple: float
    side: Literal["", "<", ">"] = ""
    """`>`: more than this, as the loss lies below all of the table's."""

    def __str__(self) -> str:
        """`6.1x`, `> 20x`."""
        return f"{self.side} {self.multiple:.3g}x".lstrip()


def data_efficiency(loss: float, table: Sequence[tuple[float, float]], unique_tokens: float) -> Efficiency:
    """The unique tokens at which a table has `loss`, over `unique_tokens`.

    table: (tokens, loss) with tokens upwards and losses downwards. Raises ValueError for a loss that is not finite.
    """
    if not abs(loss) < float("inf"):
        raise ValueError(f"a loss of {loss} has no data efficiency")
    (fewest, worst), (most, best) = table[0], table[-1]
    if loss > worst:
        return Efficiency(fewest / unique_tokens, "<")
    if loss < best:
        return Efficiency(most / unique_tokens, ">")
    at = next(at for at, (_, there) in enumerate(table[1:]) if loss >= there)
    (fewer, above), (more, below) = table[at], table[at + 1]
    return Efficiency((fewer + (more - fewer) * (above - loss) / (above - below)) / unique_tokens)
