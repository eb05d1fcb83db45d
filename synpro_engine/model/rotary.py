"""Rotary positions (Su et al., arXiv 2104.09864): one formula of the angles for trainer, sampler and oracles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from synpro_engine.model.config import ModelConfig


def inverse_frequencies(config: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """Angle per position of each pair (i, i + h/2) of a head, fp32 [h/2].

    Computed on the CPU whatever the device, whose power function may differ in the last bit: at long positions that
    bit is seen.
    """
    width = config.head_size
    frequency = 1.0 / config.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    scaling = config.rope_scaling
    if scaling is not None:
        # Llama 3.1's stretch: between the two wave lengths linear in original / wave, the turns made in pretraining.
        turns = scaling.original_max_position_embeddings / (2 * math.pi / frequency)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        unstretched = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        frequency = (1.0 - unstretched) * frequency / scaling.factor + unstretched * frequency
    return frequency.to(device)


def cos_sin(position: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [..., h], fp32, of each position's angles; every frequency stands in both halves."""
    # fp32 whatever the model's type: bf16 tells positions apart up to 256 only.
    angle = position.to(torch.float32)[..., None] * torch.cat((frequency, frequency))
    return angle.cos(), angle.sin()
