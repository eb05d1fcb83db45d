"""The report of a run: one self-contained HTML page and the closing lines in the terminal.

Knows typed numbers and texts (`ReportData`); who measured them, and where they are stored, is none of its business.
"""

from synpro_engine.report.model import (
    SMALL_RUN_STATEMENT,
    ArmTokens,
    Curve,
    DiversityRow,
    Environment,
    HeldOutLoss,
    InfluenceValues,
    InRunInfluence,
    ModelInfo,
    OperationYield,
    PlateauInfo,
    ReportData,
    RewardCurves,
    Sample,
    ScoredDocument,
    StageTiming,
    TokenAccount,
)
from synpro_engine.report.page import render_report, write_report
from synpro_engine.report.terminal import closing_summary

__all__ = [
    "ArmTokens",
    "Curve",
    "DiversityRow",
    "Environment",
    "HeldOutLoss",
    "InRunInfluence",
    "InfluenceValues",
    "ModelInfo",
    "OperationYield",
    "PlateauInfo",
    "ReportData",
    "RewardCurves",
    "SMALL_RUN_STATEMENT",
    "Sample",
    "ScoredDocument",
    "StageTiming",
    "TokenAccount",
    "closing_summary",
    "render_report",
    "write_report",
]
