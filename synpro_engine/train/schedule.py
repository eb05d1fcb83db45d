"""Learning rate as a pure function of the step, so that resuming needs nothing but the step.

Megatron's own scheduler keeps a counter of its own and starts a warm-up at a rate of zero, so that its first step
changes nothing.
"""

from __future__ import annotations

import math

from synpro_engine.train.config import ScheduleConfig


def lr_factor(config: ScheduleConfig, step: int) -> float:
    """Factor in [0, 1] on the peak learning rate for the step with 0-based index `step`.

    warm-up: (step + 1) / warmup_steps. With t in [0, 1] the part of the decay done and f the floor,
    cosine: f + (1 - f) (1 + cos(pi t)) / 2; wsd: f + (1 - f) (1 - t) or f + (1 - f) (1 - sqrt(t)).
    """
    assert step >= 0
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return 1.0
    assert config.total_steps is not None  # checked by ScheduleConfig
    if config.kind == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * _progress(step, config.warmup_steps, config.total_steps)))
    else:
        assert config.decay_steps is not None
        done = _progress(step, config.total_steps - config.decay_steps, config.total_steps)
        left = 1.0 - (math.sqrt(done) if config.decay_shape == "sqrt" else done)
    return config.floor + (1.0 - config.floor) * left


def _progress(step: int, start: int, end: int) -> float:
    return min(1.0, max(0.0, (step - start) / (end - start)))
