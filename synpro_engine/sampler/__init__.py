"""Sampling from the weights in training: KV cache, prefix sharing, decoding. Knows token ids only."""

from synpro_engine.sampler.config import Completion, Nuclei, SamplerConfig, SamplingConfig
from synpro_engine.sampler.sampler import Sampler
from synpro_engine.sampler.work import SamplerStats

__all__ = ["Completion", "Nuclei", "Sampler", "SamplerConfig", "SamplerStats", "SamplingConfig"]
