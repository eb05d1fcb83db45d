"""From a run's directory to its report: NAME.py reads what fills the section of that name in `report/sections`.

Knows what the stages wrote, finished or not; computes little and draws nothing.
"""

from synpro_engine.cycle.summaries.comparison import comparison
from synpro_engine.cycle.summaries.environment import write_environment
from synpro_engine.cycle.summaries.report_data import report_data

__all__ = ["comparison", "report_data", "write_environment"]
