"""The report of a run: one self-contained HTML page and the closing lines in the terminal.

Knows typed numbers and texts (`ReportData`); does not know who measured them, or where they are stored.
"""

from synpro_engine.report.compared_run import ComparedRun
from synpro_engine.report.comparison import Comparison
from synpro_engine.report.data import ModelInfo, OperationShare, ReportData
from synpro_engine.report.page import render_comparison, render_report, write_comparison, write_report
from synpro_engine.report.sections.arms import Arms, DataEfficiency, HeldOutLoss, SourceLoss, over_seeds
from synpro_engine.report.sections.corpus import CorpusInfo, Leak, SplitSize, TaskInfo
from synpro_engine.report.sections.downstream import Downstream, QuestionsAsked, TaskCurve, TaskResult
from synpro_engine.report.sections.downstream import joined as join_task_curves
from synpro_engine.report.sections.effective_tokens import EffectiveCurve, EffectiveTokens, UniquePoint
from synpro_engine.report.sections.environment import Environment
from synpro_engine.report.sections.influence import Influence, InRunInfluence, OperationInfluence, ScoredDocument
from synpro_engine.report.sections.pretraining import Curve, CurveKind, Plateau, Pretraining
from synpro_engine.report.sections.provenance import Provenance, SourceText, TrainedDocument, TrainedWindow
from synpro_engine.report.sections.samples import Sample
from synpro_engine.report.sections.timeline import StageTiming, Timeline
from synpro_engine.report.sections.tokens import ArmTokens, MadeTokens, TokenAccount
from synpro_engine.report.sections.tuning import Measured, RewardCurves
from synpro_engine.report.terminal import closing_summary

__all__ = [
    "ArmTokens",
    "Arms",
    "ComparedRun",
    "Comparison",
    "CorpusInfo",
    "Curve",
    "CurveKind",
    "DataEfficiency",
    "Downstream",
    "EffectiveCurve",
    "EffectiveTokens",
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
    "Provenance",
    "QuestionsAsked",
    "ReportData",
    "RewardCurves",
    "Sample",
    "ScoredDocument",
    "SourceText",
    "SplitSize",
    "SourceLoss",
    "StageTiming",
    "TaskCurve",
    "TaskInfo",
    "TaskResult",
    "Timeline",
    "TokenAccount",
    "TrainedDocument",
    "TrainedWindow",
    "UniquePoint",
    "closing_summary",
    "join_task_curves",
    "over_seeds",
    "render_comparison",
    "render_report",
    "write_comparison",
    "write_report",
]
