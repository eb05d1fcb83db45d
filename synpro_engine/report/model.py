"""What a report is made of: plain frozen records of numbers and texts.

Knows no file, no model and no stage of the cycle: whoever runs the cycle fills these in. Every part of `ReportData`
but the title is optional, and a part left empty is shown as "not run yet", so that a run can be looked at half-way.
Times are in seconds, losses in nats per token, lengths in tokens unless a field says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from synpro_engine.evaluate import Diversity, bits_per_byte

SMALL_RUN_STATEMENT = (
    "A run of this size cannot show an effective-token gain. The model is far too small, the synthetic pool too short "
    "and each arm was trained once, with one seed, so a difference between the arms below cannot be told from chance. "
    "What the run shows is that every part of the cycle is real and wired: the model is pretrained, its loss "
    "is watched for a plateau, influence is measured on that very model, the generator is tuned against it, and the "
    "model is trained on what the generator wrote."
)

StageStatus = Literal["done", "reused", "running", "failed", "not run"]
CurveKind = Literal["train", "reference", "validation"]


@dataclass(frozen=True, kw_only=True)
class StageTiming:
    """One stage of the run. `start` counts from the start of the run; without it stages are laid end to end."""

    name: str
    status: StageStatus
    seconds: float | None = None
    start: float | None = None
    artifact: str | None = None  # directory, as the reader of the report should see it
    content_hash: str | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model of the run: its role (`pretrained`, `generator`, ...), one line about it, its number of parameters."""

    role: str
    description: str
    parameters: int


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
class InfluenceValues:
    """Influence, in nats per token, of source slices and of texts made from them.

    By how much the loss of a text falls when the weights move as the reference wants: by a probe's walk, or, `per_nat`,
    along a step that would lower the loss of the reference by one nat per token, to first order.
    """

    operation: str
    per_nat: bool
    sources: tuple[float, ...]
    generated: tuple[float, ...]


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


@dataclass(frozen=True, kw_only=True)
class RewardCurves:
    """Means over the completions of each tuning step, of one operation's generator."""

    operation: str
    steps: tuple[int, ...]
    total: tuple[float, ...]
    parts: Mapping[str, tuple[float, ...]]  # before weighting
    weights: Mapping[str, float] = field(default_factory=dict)
    kl: tuple[float, ...] = ()  # k3 estimate to the reference policy, nats per token
    lengths: tuple[float, ...] = ()  # tokens per completion


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A source slice and what the generator made of it. `text` is the parsed text; the raw completion if rejected."""

    operation: str
    source_id: str
    source: str
    text: str
    accepted: bool
    reason: str = ""  # why it was rejected
    total: float | None = None
    rewards: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OperationYield:
    """How many completions of an operation became documents, and how many were rejected for each reason."""

    operation: str
    kept: int
    rejects: Mapping[str, int] = field(default_factory=dict)

    @property
    def generated(self) -> int:
        """Completions sampled, kept or not."""
        return self.kept + sum(self.rejects.values())


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


@dataclass(frozen=True, kw_only=True)
class DiversityRow:
    """Diversity of one set of texts, under the name the table shows."""

    name: str
    measures: Diversity


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the run ran on. `implementations` maps a part (attention, optimizer, ...) to what it used and why."""

    device: str
    layout: str  # e.g. "1 process" or "TP 2 x DP 1"
    versions: Mapping[str, str] = field(default_factory=dict)
    implementations: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    git_commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that the page shows."""

    title: str
    recipe: str = ""
    created: str = ""  # when the run ended, as the reader should see it
    statement: str = SMALL_RUN_STATEMENT
    config: Mapping[str, object] = field(default_factory=dict)  # resolved, JSON-like
    models: tuple[ModelInfo, ...] = ()
    stages: tuple[StageTiming, ...] = ()
    curve_unit: Literal["step", "tokens"] = "step"
    pretrain: tuple[Curve, ...] = ()
    arms: tuple[Curve, ...] = ()
    plateau: PlateauInfo | None = None
    in_run: InRunInfluence | None = None
    influence: tuple[InfluenceValues, ...] = ()
    rewards: tuple[RewardCurves, ...] = ()
    yields: tuple[OperationYield, ...] = ()
    samples: tuple[Sample, ...] = ()
    diversity: tuple[DiversityRow, ...] = ()
    tokens: TokenAccount | None = None
    held_out: tuple[HeldOutLoss, ...] = ()
    environment: Environment | None = None
