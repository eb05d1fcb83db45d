"""What a report is made of: plain frozen records of numbers and texts, and `ReportData`, which holds all of a run's.

Knows no file, no model and no stage of the cycle: whoever runs the cycle fills these in. Every part of `ReportData`
but the title is optional, and a part left empty is shown as "not run yet", so that a run can be looked at half-way.
Times are in seconds, losses in nats per token, lengths in tokens unless a field says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from synpro_engine.report.corpus_records import CorpusInfo
from synpro_engine.report.generator_records import (
    DiversityRow,
    InfluenceValues,
    RewardCurves,
    Sample,
    YieldRow,
)
from synpro_engine.report.in_run_records import InRunInfluence
from synpro_engine.report.training_records import Curve, HeldOutLoss, PlateauInfo, TokenAccount

SMALL_RUN_STATEMENT = (
    "A run of this size cannot show an effective-token gain. The model is far too small, the synthetic pool too short "
    "and each arm was trained once, with one seed, so a difference between the arms below cannot be told from chance. "
    "What the run shows is that every part of the cycle is real and wired: the model is pretrained, its loss "
    "is watched for a plateau, influence is measured on that very model, the generator is tuned against it, and the "
    "model is trained on what the generator wrote."
)

StageStatus = Literal["done", "reused", "running", "failed", "not run"]


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
    corpus: CorpusInfo | None = None
    curve_unit: Literal["step", "tokens"] = "step"
    pretrain: tuple[Curve, ...] = ()
    arms: tuple[Curve, ...] = ()
    plateau: PlateauInfo | None = None
    in_run: InRunInfluence | None = None
    influence: tuple[InfluenceValues, ...] = ()
    rewards: tuple[RewardCurves, ...] = ()
    yields: tuple[YieldRow, ...] = ()
    samples: tuple[Sample, ...] = ()
    diversity: tuple[DiversityRow, ...] = ()
    tokens: TokenAccount | None = None
    held_out: tuple[HeldOutLoss, ...] = ()
    environment: Environment | None = None
