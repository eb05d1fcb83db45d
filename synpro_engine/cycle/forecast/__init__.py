"""What a run will take, before anything of it starts: tokens, FLOPs, a rank's memory, disk and time, stage by stage.

Counted from the recipe and the layout; nothing is built and no weight is read. What cannot be known beforehand is
counted at its bound (every completion as long as it may be, every slice full) or left open, and remarks say so.
"""

from synpro_engine.cycle.forecast.cost import NEEDED, Cost
from synpro_engine.cycle.forecast.run import Forecast, forecast

__all__ = ["NEEDED", "Cost", "Forecast", "forecast"]
