"""Data influence on the model being trained: the probe's displacement and what it says about a text."""

from synpro_engine.influence.choice import EstimatorConfig, build_estimator
from synpro_engine.influence.direction import Direction, displacement
from synpro_engine.influence.direction_files import load_direction, save_direction
from synpro_engine.influence.dot import DotInfluence
from synpro_engine.influence.estimator import Estimator, SequenceScore
from synpro_engine.influence.examples import Examples, ExampleScore
from synpro_engine.influence.in_run import InRun, WatchedStep
from synpro_engine.influence.next_step import next_step_direction
from synpro_engine.influence.oracles import FiniteDifferenceInfluence, JvpInfluence
from synpro_engine.influence.probe import ProbeConfig, ProbeStep, run_probe
from synpro_engine.influence.reference import mean_gradient, probe_direction
from synpro_engine.influence.score_log import DocumentScore, ScoreLog, ScoreRecord, by_document, read_scores
from synpro_engine.influence.scores import Influence, InfluenceScore, TextInfluence, text_likelihood
from synpro_engine.influence.sequences import sequence_logprobs

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
    "Influence",
    "InfluenceScore",
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
    "mean_gradient",
    "next_step_direction",
    "probe_direction",
    "read_scores",
    "run_probe",
    "save_direction",
    "sequence_logprobs",
    "text_likelihood",
]
