"""What a run's time goes into: exits by reason and place, and the kernel's own counters."""

from pykvm.observe.statistics.counters import KernelCounters
from pykvm.observe.statistics.result import ExitStatistics, StatisticsResult
from pykvm.observe.statistics.statistics import Statistics
from pykvm.observe.statistics.times import ExitTimes

__all__ = ["ExitStatistics", "ExitTimes", "KernelCounters", "Statistics", "StatisticsResult"]
