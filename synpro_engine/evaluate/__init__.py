"""Measures of texts and losses: bits per byte, the diversity of a set of texts, what two sets have in common.

Knows numbers and texts. It runs no model: a held-out loss is measured by `train`, which owns the forward pass.
"""

from synpro_engine.evaluate.bits import bits_per_byte
from synpro_engine.evaluate.diversity import Diversity, measure_diversity
from synpro_engine.evaluate.overlap import Overlap, measure_overlap

__all__ = ["Diversity", "Overlap", "bits_per_byte", "measure_diversity", "measure_overlap"]
