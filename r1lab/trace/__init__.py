"""What a run leaves behind and how to read it: metrics, completions, reflection, live progress, curves.

Importing this package loads neither pandas nor matplotlib; the functions that need them do.
"""

from r1lab.trace.curves import plot_curves
from r1lab.trace.metrics import MetricsLog, read_metrics
from r1lab.trace.progress import Progress
from r1lab.trace.recorder import Run, load_run, read_completions, remove_completions_after, write_completions
from r1lab.trace.reflection import (
    AhaEvent,
    Attempt,
    Reflection,
    aha_events,
    find_reflections,
    parse_attempts,
    reflection_metrics,
)

__all__ = [
    "AhaEvent",
    "Attempt",
    "MetricsLog",
    "Progress",
    "Reflection",
    "Run",
    "aha_events",
    "find_reflections",
    "load_run",
    "parse_attempts",
    "plot_curves",
    "read_completions",
    "read_metrics",
    "reflection_metrics",
    "remove_completions_after",
    "write_completions",
]
