"""The report of a run: one self-contained HTML page and the closing lines in the terminal.

Knows typed numbers and texts (`ReportData`); who measured them, and where they are stored, is none of its business.
"""

from synpro_engine.report.corpus_records import CorpusInfo, SplitSize
from synpro_engine.report.generator_records import DiversityRow, InfluenceValues, RewardCurves, Sample, YieldRow
from synpro_engine.report.in_run_records import InRunInfluence, ScoredDocument
from synpro_engine.report.model import SMALL_RUN_STATEMENT, Environment, ModelInfo, ReportData, StageTiming
from synpro_engine.report.page import render_report, write_report
from synpro_engine.report.terminal import closing_summary
from synpro_engine.report.training_records import ArmTokens, Curve, CurveKind, HeldOutLoss, PlateauInfo, TokenAccount

__all__ = [
    "ArmTokens",
    "CorpusInfo",
    "Curve",
    "CurveKind",
    "DiversityRow",
    "Environment",
    "HeldOutLoss",
    "InRunInfluence",
    "InfluenceValues",
    "ModelInfo",
    "YieldRow",
    "PlateauInfo",
    "ReportData",
    "RewardCurves",
    "SMALL_RUN_STATEMENT",
    "Sample",
    "ScoredDocument",
    "SplitSize",
    "StageTiming",
    "TokenAccount",
    "closing_summary",
    "render_report",
    "write_report",
]
