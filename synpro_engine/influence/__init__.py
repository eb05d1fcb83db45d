"""Data influence on the model being trained: the probe's displacement and what it says about a text."""

from synpro_engine.influence.batching import sequence_logprobs
from synpro_engine.influence.config import EstimatorConfig
from synpro_engine.influence.directions import (
    Direction,
    ProbeConfig,
    ProbeStep,
    displacement,
    load_direction,
    mean_direction,
    mean_gradient,
    next_step_direction,
    next_step_directions,
    probe_direction,
    run_probe,
    save_direction,
)
from synpro_engine.influence.estimator import Estimator, SequenceScore
from synpro_engine.influence.examples import Examples, ExampleScore
from synpro_engine.influence.first_order import DotInfluence, JvpInfluence
from synpro_engine.influence.in_run import (
    DocumentScore,
    InRun,
    ScoreLog,
    ScoreRecord,
    WatchedStep,
    by_document,
    read_scores,
)
from synpro_engine.influence.texts import TextInfluence, build_estimator, text_likelihood
from synpro_engine.influence.two_forward import FiniteDifferenceInfluence, TwoForwardInfluence

__all__ = [
    "Direction",
    "DotInfluence",
    "DocumentScore",
    "Estimator",
    "EstimatorConfig",
    "ExampleScore",
    "Examples",
    "FiniteDifferenceInfluence",
    "InRun",
    "TwoForwardInfluence",
    "JvpInfluence",
    "ProbeConfig",
    "ProbeStep",
    "ScoreLog",
    "ScoreRecord",
    "SequenceScore",
    "TextInfluence",
    "WatchedStep",
    "build_estimator",
    "by_document",
    "displacement",
    "load_direction",
    "mean_direction",
    "mean_gradient",
    "next_step_direction",
    "next_step_directions",
    "probe_direction",
    "read_scores",
    "run_probe",
    "save_direction",
    "sequence_logprobs",
    "text_likelihood",
]
