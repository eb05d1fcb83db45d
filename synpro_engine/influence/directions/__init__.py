"""Directions in weight space: what influence is measured along, what they are made from, and how they are stored.

Knows gradients, AdamW, Muon and the walk of a probe; scores nothing.
"""

from synpro_engine.influence.directions.direction import (
    Direction,
    check_fits,
    check_has_length,
    displaced,
    displacement,
    inner,
    weights_of,
)
from synpro_engine.influence.directions.direction_files import load_direction, save_direction
from synpro_engine.influence.directions.gradient import mean_direction, mean_gradient
from synpro_engine.influence.directions.next_adamw import NextAdamW
from synpro_engine.influence.directions.next_step import (
    NextStep,
    NoDirectionError,
    clip_factor,
    next_step_direction,
    next_step_directions,
)
from synpro_engine.influence.directions.optimizer_state import optimizer_values
from synpro_engine.influence.directions.probe import (
    ProbeConfig,
    ProbeStep,
    probe_direction,
    run_probe,
    start_probe,
    walk,
)

__all__ = [
    "Direction",
    "NextAdamW",
    "NextStep",
    "NoDirectionError",
    "ProbeConfig",
    "ProbeStep",
    "check_fits",
    "check_has_length",
    "clip_factor",
    "displaced",
    "displacement",
    "inner",
    "load_direction",
    "mean_direction",
    "mean_gradient",
    "next_step_direction",
    "next_step_directions",
    "optimizer_values",
    "probe_direction",
    "run_probe",
    "save_direction",
    "start_probe",
    "walk",
    "weights_of",
]
