"""Counting what came out of a generation: what was accepted, what was refused and why.

Nothing here depends on time, so equal runs give equal reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from synpro_engine.config import Config


class OperationYield(Config):
    """One operation's completions. Characters and tokens are the generator's; text is without headings."""

    accepted: int
    rejected: dict[str, int]
    """Number of refused completions by reason."""
    source_chars: int
    """Characters of the slices, counted once per completion that was tried."""
    prompt_tokens: int
    completion_tokens: int
    """Tokens sampled, refused ones included."""
    text_tokens: int
    """Tokens of the accepted texts."""
    text_chars: int
    mean_rewards: dict[str, float]
    """Over the accepted ones."""
    cut_chars: dict[str, int] = Field(default_factory=dict)
    """Characters of accepted answers, white space aside, that are not in their texts, by cause (`Cut`)."""
    cut_answers: dict[str, int] = Field(default_factory=dict)
    """Number of accepted answers that lost something, by cause."""

    @property
    def completions(self) -> int:
        """Completions tried."""
        return self.accepted + sum(self.rejected.values())


class YieldReport(Config):
    """The outcome of a bulk generation, by operation."""

    by_operation: dict[str, OperationYield]

    @property
    def accepted(self) -> int:
        """Documents written."""
        return sum(one.accepted for one in self.by_operation.values())

    @property
    def completions(self) -> int:
        """Completions tried."""
        return sum(one.completions for one in self.by_operation.values())

    @property
    def rejected(self) -> dict[str, int]:
        """Refused completions by reason, the most frequent first."""
        total: Counter[str] = Counter()
        for one in self.by_operation.values():
            total.update(one.rejected)
        return dict(total.most_common())

    @property
    def cut_answers(self) -> dict[str, int]:
        """Accepted answers that lost something, by cause, the most frequent first."""
        total: Counter[str] = Counter()
        for one in self.by_operation.values():
            total.update(one.cut_answers)
        return dict(total.most_common())

    @property
    def text_tokens(self) -> int:
        """Tokens of all accepted texts, by the generator's tokenizer."""
        return sum(one.text_tokens for one in self.by_operation.values())

    @property
    def summary(self) -> str:
        """One line for the user."""
        parts = [f"{self.accepted} of {self.completions} completions accepted, {self.text_tokens} tokens"]
        for word, counts in (("refused", self.rejected), ("accepted without", self.cut_answers)):
            if counts:
                parts.append(f"{word}: " + ", ".join(f"{cause} {count}" for cause, count in counts.items()))
        return "; ".join(parts)


class YieldCounter:
    """Adds up records one by one."""

    def __init__(self) -> None:
        self._sums: dict[str, Counter[str]] = {}
        self._reasons: dict[str, Counter[str]] = {}
        self._cut_chars: dict[str, Counter[str]] = {}
        self._cut_answers: dict[str, Counter[str]] = {}
        self._rewards: dict[str, dict[str, list[float]]] = {}  # sum and number

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one record of `Producer.batch`."""
        origin = record["provenance"]
        name = origin["operation"]
        sums = self._sums.setdefault(name, Counter())
        sums["source_chars"] += origin["end"] - origin["start"]
        sums["prompt_tokens"] += record["prompt_tokens"]
        sums["completion_tokens"] += record["completion_tokens"]
        if record["reason"] is not None:
            self._reasons.setdefault(name, Counter())[record["reason"]] += 1
            return
        sums["accepted"] += 1
        sums["text_tokens"] += record["text_tokens"]
        sums["text_chars"] += len(record["text"])
        self._cut_chars.setdefault(name, Counter()).update(record["cut"])
        self._cut_answers.setdefault(name, Counter()).update(record["cut"].keys())
        for reward, value in record["rewards"].items():
            # In the order of the work list: the report is then equal to the last digit.
            total = self._rewards.setdefault(name, {}).setdefault(reward, [0.0, 0])
            total[0], total[1] = total[0] + value, total[1] + 1

    def report(self) -> YieldReport:
        """What was counted so far."""
        return YieldReport(by_operation={name: self._one(name) for name in self._sums})

    def _one(self, name: str) -> OperationYield:
        sums = self._sums[name]
        rewards = self._rewards.get(name, {})
        return OperationYield(
            accepted=sums["accepted"],
            rejected=dict(self._reasons.get(name, Counter()).most_common()),
            source_chars=sums["source_chars"],
            prompt_tokens=sums["prompt_tokens"],
            completion_tokens=sums["completion_tokens"],
            text_tokens=sums["text_tokens"],
            text_chars=sums["text_chars"],
            cut_chars=dict(self._cut_chars.get(name, Counter()).most_common()),
            cut_answers=dict(self._cut_answers.get(name, Counter()).most_common()),
            mean_rewards={reward: total / number for reward, (total, number) in rewards.items()},
        )
