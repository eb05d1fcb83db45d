"""Settings found by whole trainings: which to try, one training for each, and what came of all of them.

Knows runs from the outside: a trial is a run of `pretrain` in a directory of its own. Optuna decides what is tried next
and what is ended early; it is imported by `study` alone, and only where a sweep is made.
"""

from synpro_engine.sweep.ranges import Choices, Numbers, Range, ranges_of
from synpro_engine.sweep.sweep import Sweep, SweepConfig

__all__ = ["Choices", "Numbers", "Range", "Sweep", "SweepConfig", "ranges_of"]
