"""Data influence on the model being trained: the probe's displacement and what it says about a text."""

from synpro_engine.influence.direction import Direction, displacement, load_direction, save_direction
from synpro_engine.influence.dot import DotInfluence
from synpro_engine.influence.estimator import Estimator, SequenceScore
from synpro_engine.influence.oracles import FiniteDifferenceInfluence, JvpInfluence
from synpro_engine.influence.probe import ProbeConfig, ProbeStep, run_probe
from synpro_engine.influence.scores import Influence, InfluenceScore, TextInfluence, text_likelihood
from synpro_engine.influence.sequences import sequence_logprobs

__all__ = [
    "Direction",
    "DotInfluence",
    "Estimator",
    "FiniteDifferenceInfluence",
    "Influence",
    "InfluenceScore",
    "JvpInfluence",
    "ProbeConfig",
    "ProbeStep",
    "SequenceScore",
    "TextInfluence",
    "displacement",
    "load_direction",
    "run_probe",
    "save_direction",
    "sequence_logprobs",
    "text_likelihood",
]
