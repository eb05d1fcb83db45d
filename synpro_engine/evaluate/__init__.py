"""Measures of texts and losses: bits per byte, the diversity of a set of texts, what two sets have in common.

Knows numbers and texts. It runs no model: a held-out loss is measured by `train`, which owns the forward pass.
"""

import math

from synpro_engine.evaluate.divergence import Divergences, divergences
from synpro_engine.evaluate.diversity import (
    Diversity,
    common_words,
    measure_diversities,
    measure_diversity,
    rare_share,
)
from synpro_engine.evaluate.efficiency import Efficiency, EfficiencyConfig, data_efficiency
from synpro_engine.evaluate.overlap import Overlap, measure_overlap
from synpro_engine.evaluate.self_bleu import self_bleu

__all__ = [
    "Divergences",
    "Diversity",
    "Efficiency",
    "EfficiencyConfig",
    "Overlap",
    "bits_per_byte",
    "common_words",
    "data_efficiency",
    "divergences",
    "measure_diversities",
    "measure_diversity",
    "measure_overlap",
    "rare_share",
    "self_bleu",
]


def bits_per_byte(nats: float, utf8_bytes: int) -> float:
    """Loss in bits for each byte of the text that was predicted, which can be compared between tokenizers.

    Args:
        nats: cross-entropy in nats, summed (not averaged) over every predicted token.
        utf8_bytes: length in UTF-8 bytes of the text that these tokens spell.

    Raises:
        ValueError: there is no byte to divide by.
    """
    if utf8_bytes <= 0:
        raise ValueError(f"bits per byte needs at least one byte of text, got {utf8_bytes}")
    return nats / (math.log(2.0) * utf8_bytes)
