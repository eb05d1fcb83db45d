"""Influence as the difference of two losses, each from a forward pass: theta's and the probe's, or on either side.

Knows losses at given weights; needs no gradient.
"""

from synpro_engine.influence.two_forward.finite_difference import FiniteDifferenceInfluence
from synpro_engine.influence.two_forward.two_forward import TwoForwardInfluence

__all__ = ["FiniteDifferenceInfluence", "TwoForwardInfluence"]
