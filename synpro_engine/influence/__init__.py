"""Data influence on the model being trained: the probe's displacement and what it says about a text."""

from synpro_engine.influence.probe import ProbeConfig, ProbeStep, run_probe
from synpro_engine.influence.scores import Influence, InfluenceScore, TextInfluence, text_likelihood
from synpro_engine.influence.sequences import sequence_logprobs

__all__ = [
    "Influence",
    "InfluenceScore",
    "ProbeConfig",
    "ProbeStep",
    "TextInfluence",
    "run_probe",
    "sequence_logprobs",
    "text_likelihood",
]
