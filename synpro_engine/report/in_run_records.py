"""What a report shows of the influence of training documents, measured in the steps that trained on them.

Plain frozen records. Knows no file, no model and no stage of the cycle.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ScoredDocument:
    """A training document, its mean influence over the `tokens` that were scored, and its first words."""

    id: str
    words: str
    value: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class InRunInfluence:
    """Influence of training documents, measured in the steps that trained on them.

    To first order, along the reference gradient: as AdamW's next step would meet it (`per_nat`: nats per token for a
    step that lowers the loss of the reference by one nat per token), or as it is (per unit of learning rate).
    """

    per_nat: bool
    steps: tuple[int, ...]  # those that were scored
    trained_steps: int
    low: tuple[float, ...]  # of each scored step: the value that a tenth of its tokens lies below,
    median: tuple[float, ...]
    high: tuple[float, ...]  # and above
    documents: tuple[float, ...]  # each document's mean over all scored steps
    least_tokens: int  # documents with fewer scored tokens are in neither list
    best: tuple[ScoredDocument, ...]  # most helpful first
    worst: tuple[ScoredDocument, ...]  # least helpful first
    agreement: float | None  # rank correlation of documents' means over the first and the second half of scored steps
    agreeing_documents: int  # those that stand in both
    plain_seconds: float | None  # median of a step that was not scored; None where all were
    scored_seconds: float  # median, with the scoring
    renewals: int  # of the direction
    renewal_seconds: float  # all of them together

    @property
    def cost_share(self) -> float | None:
        """Time that scoring added, as a share of the time of the same steps without it; None where that is unknown."""
        if not self.plain_seconds:
            return None
        added = len(self.steps) * (self.scored_seconds - self.plain_seconds) + self.renewal_seconds
        return added / (self.trained_steps * self.plain_seconds)
