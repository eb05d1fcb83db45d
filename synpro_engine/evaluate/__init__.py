"""Measures of what came out: bits per byte and the diversity of a set of texts.

Knows numbers and texts. It runs no model: a held-out loss is measured by `train`, which owns the forward pass.
"""

from synpro_engine.evaluate.bits import bits_per_byte
from synpro_engine.evaluate.diversity import Diversity, measure_diversity

__all__ = ["Diversity", "bits_per_byte", "measure_diversity"]
