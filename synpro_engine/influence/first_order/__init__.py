"""Influence to first order, <grad L(x), v>: by a backward pass that forms no weight gradient, or in forward mode.

Knows the formulas of layers and how ranks split them; does not know where a direction comes from.
"""

from synpro_engine.influence.first_order.capture import Capture, stacked
from synpro_engine.influence.first_order.dot import DotInfluence
from synpro_engine.influence.first_order.jvp import JvpInfluence
from synpro_engine.influence.first_order.layer_dots import weight_of, whole_sequence
from synpro_engine.influence.first_order.output_layer import output_pass
from synpro_engine.influence.first_order.plain_decoder import plain_logits, plain_logprobs

__all__ = [
    "Capture",
    "DotInfluence",
    "JvpInfluence",
    "output_pass",
    "plain_logits",
    "plain_logprobs",
    "stacked",
    "weight_of",
    "whole_sequence",
]
