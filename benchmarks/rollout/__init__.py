"""This engine's sampler held to transformers' `generate` and to what reading the weights takes."""
