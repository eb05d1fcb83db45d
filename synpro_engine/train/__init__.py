"""Training on any layout: the step, schedules, checkpoints, metrics, plateau detection, the pretraining loop.

Importing this package loads nothing: import the module that is needed (`train.config` is cheap, `train.engine` loads
Megatron).
"""
