"""Ops with one contract each and a plain PyTorch reference that is their definition. Knows torch and Triton only.

Importing this package loads nothing: import the op's own package (`synpro_kernels.linear_logprob`).
"""
