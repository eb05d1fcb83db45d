"""Influence of training's own examples, read off the steps that train on them, and the record of it.

Knows the engine's steps; does not know which documents are trained on, nor along what they are scored.
"""

from synpro_engine.influence.in_run.in_run import InRun, Method, WatchedStep
from synpro_engine.influence.in_run.score_log import (
    SCORES,
    DocumentScore,
    ScoreLog,
    ScoreRecord,
    by_document,
    read_scores,
)

__all__ = [
    "SCORES",
    "DocumentScore",
    "InRun",
    "Method",
    "ScoreLog",
    "ScoreRecord",
    "WatchedStep",
    "by_document",
    "read_scores",
]
