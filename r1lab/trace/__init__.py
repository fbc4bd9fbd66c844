"""What a run leaves behind and how to read it: metrics, completions, reflection, live progress, curves.

Importing this package loads neither pandas nor matplotlib; the functions that need them do.
"""

from r1lab.trace.attempts import Attempt, Equation, parse_attempts, parse_equations
from r1lab.trace.behaviours import Behaviours, find_behaviours, given_numbers
from r1lab.trace.curves import plot_curves
from r1lab.trace.load import Run, load_run, read_completions
from r1lab.trace.metrics import MetricsLog, read_metrics
from r1lab.trace.progress import Progress
from r1lab.trace.recorder import remove_completions_after, write_completions
from r1lab.trace.reflection import AhaEvent, aha_events, reflection_metrics
from r1lab.trace.words import Reflection, find_reflections

__all__ = [
    "AhaEvent",
    "Attempt",
    "Behaviours",
    "Equation",
    "MetricsLog",
    "Progress",
    "Reflection",
    "Run",
    "aha_events",
    "find_behaviours",
    "find_reflections",
    "given_numbers",
    "load_run",
    "parse_attempts",
    "parse_equations",
    "plot_curves",
    "read_completions",
    "read_metrics",
    "reflection_metrics",
    "remove_completions_after",
    "write_completions",
]
