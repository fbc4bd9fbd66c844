"""Metrics -> the page's curves and its headline numbers."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from r1lab.trace.behaviours import Behaviours
from r1lab.trace.metrics import find_accuracy_key

if TYPE_CHECKING:
    import pandas

MAX_POINTS = 400
"""A curve is thinned to about so many points."""
MIN_CASES = 5
"""A conditional share that rests on fewer completions is not drawn: it would jump between 0 and 1."""
_EDGE_POINTS = 3
"""A headline number of a training metric is the mean of so many first or last steps."""


def build_panels(metrics: "pandas.DataFrame") -> list[dict[str, Any]]:
    """The curves, panel by panel: title, unit, whether values are shares, and lines of [step, value] points.

    A quantity that the run did not log is left out, and so is a panel without any.
    """
    splits = _splits(metrics)
    accuracy = [(f"held-out {split}", f"eval/{split}/accuracy") for split in splits]
    training = find_accuracy_key(metrics.columns)
    panels = [
        ("Right answers", "share", [*accuracy, *([("training samples", training)] if training else [])]),
        ("Reward", "mean", [("reward", "reward")]),
        ("Length", "tokens", [("mean", "completions/mean_length")]),
        (
            "Reflection",
            "share of completions",
            [
                ("reflects", "reflection/rate"),
                ("aha: wrong turned right", "reflection/aha_rate"),
                ("inverse: right turned wrong", "reflection/inverse_rate"),
            ],
        ),
        (
            "Behaviours, by rule",
            "share of completions",
            [(name, f"reflection/behaviour/{name}") for name in Behaviours._fields],
        ),
        (
            "Right in the end, if the first try was wrong",
            "share",
            [
                ("and was reconsidered", "reflection/p_correct_wrong_first_reconsidered"),
                ("and was not", "reflection/p_correct_wrong_first_not_reconsidered"),
            ],
        ),
        ("Entropy", "nats a token", [("entropy", "entropy")]),
    ]
    built = []
    for title, unit, lines in panels:
        drawn = [{"name": name, "points": points} for name, key in lines if (points := _points(metrics, key))]
        if drawn:
            built.append({"title": title, "unit": unit, "is_share": unit.startswith("share"), "lines": drawn})
    return built


def build_headline(metrics: "pandas.DataFrame") -> list[dict[str, Any]]:
    """Numbers before and after: held-out accuracy a split, then reflection and length of the training samples.

    Each: {"label", "before", "after", "is_share"}; those that were logged once only are left out.
    """
    numbers = []
    for split in _splits(metrics):
        points = _points(metrics, f"eval/{split}/accuracy")
        if len(points) > 1:
            label = f"right answers, held-out {split}"
            numbers.append({"label": label, "before": points[0][1], "after": points[-1][1], "is_share": True})
    for label, key, is_share in (
        ("completions that reflect", "reflection/rate", True),
        ("tokens a completion", "completions/mean_length", False),
    ):
        values = [value for _, value in _points(metrics, key)]
        if len(values) > _EDGE_POINTS:
            before, after = _mean(values[:_EDGE_POINTS]), _mean(values[-_EDGE_POINTS:])
            numbers.append({"label": label, "before": before, "after": after, "is_share": is_share})
    return numbers


def _splits(metrics: "pandas.DataFrame") -> list[str]:
    keys = [key for key in metrics.columns if key.startswith("eval/") and key.endswith("/accuracy")]
    return [key.removeprefix("eval/").removesuffix("/accuracy") for key in keys]


def _points(metrics: "pandas.DataFrame", key: str) -> list[list[float]]:
    """[step, value] by step, without gaps; of a step logged twice the last value."""
    if key not in metrics.columns:
        return []
    num_key = key.replace("/p_correct_", "/num_")
    if num_key != key and num_key in metrics.columns:
        metrics = metrics[metrics[num_key] >= MIN_CASES]
    found = {
        int(step): round(float(value), 5)
        for step, value in zip(metrics["step"], metrics[key], strict=True)
        if isinstance(value, int | float) and math.isfinite(value)
    }
    points = [[step, found[step]] for step in sorted(found)]
    stride = math.ceil(len(points) / MAX_POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
