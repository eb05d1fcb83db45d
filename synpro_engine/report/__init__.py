"""The report of a run: one self-contained HTML page and the closing lines in the terminal.

Knows typed numbers and texts (`ReportData`); does not know who measured them, or where they are stored.
"""

from synpro_engine.report.data import ModelInfo, OperationShare, ReportData
from synpro_engine.report.page import render_report, write_report
from synpro_engine.report.sections.arms import Arms, DataEfficiency, HeldOutLoss
from synpro_engine.report.sections.corpus import CorpusInfo, Leak, SplitSize, TaskInfo
from synpro_engine.report.sections.environment import Environment
from synpro_engine.report.sections.influence import Influence, InRunInfluence, OperationInfluence, ScoredDocument
from synpro_engine.report.sections.pretraining import Curve, CurveKind, Plateau, Pretraining
from synpro_engine.report.sections.samples import Sample
from synpro_engine.report.sections.timeline import StageTiming, Timeline
from synpro_engine.report.sections.tokens import ArmTokens, MadeTokens, TokenAccount
from synpro_engine.report.sections.tuning import Measured, RewardCurves
from synpro_engine.report.terminal import closing_summary

__all__ = [
    "ArmTokens",
    "Arms",
    "CorpusInfo",
    "Curve",
    "CurveKind",
    "DataEfficiency",
    "Environment",
    "HeldOutLoss",
    "InRunInfluence",
    "Influence",
    "Leak",
    "MadeTokens",
    "Measured",
    "ModelInfo",
    "OperationInfluence",
    "OperationShare",
    "Plateau",
    "Pretraining",
    "ReportData",
    "RewardCurves",
    "Sample",
    "ScoredDocument",
    "SplitSize",
    "StageTiming",
    "TaskInfo",
    "Timeline",
    "TokenAccount",
    "closing_summary",
    "render_report",
    "write_report",
]
