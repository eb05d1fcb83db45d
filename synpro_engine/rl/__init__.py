"""Tuning a generator with group-relative policy optimisation: rollouts, advantages, losses, the loop.

Importing this package loads nothing: import the module that is needed (`rl.config` is cheap, `rl.trainer` loads
Megatron).
"""
