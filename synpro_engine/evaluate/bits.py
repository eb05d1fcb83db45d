"""Bits per byte: a loss that can be compared between tokenizers."""

import math


def bits_per_byte(nats: float, utf8_bytes: int) -> float:
    """Loss in bits for each byte of the text that was predicted.

    Args:
        nats: cross-entropy in nats, summed (not averaged) over every predicted token.
        utf8_bytes: length in UTF-8 bytes of the text that these tokens spell.

    Raises:
        ValueError: there is no byte to divide by.
    """
    if utf8_bytes <= 0:
        raise ValueError(f"bits per byte needs at least one byte of text, got {utf8_bytes}")
    return nats / (math.log(2.0) * utf8_bytes)
