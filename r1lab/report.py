"""Tables: a run's base against its final policy, and two evaluations against each other, split by split."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from r1lab.evaluate import Comparison

Intervals = Mapping[str, tuple[float, float]]

ROWS = {
    "accuracy, sampled": "accuracy",
    "accuracy, sampled, format-blind": "accuracy_blind",
    "accuracy, greedy": "greedy_accuracy",
    "accuracy, greedy, format-blind": "greedy_accuracy_blind",
    "well formed": "format",
    "completions that reflect": "reflection/rate",
    "right | first try wrong, reconsidered": "reflection/p_correct_wrong_first_reconsidered",
    "right | first try wrong, not reconsidered": "reflection/p_correct_wrong_first_not_reconsidered",
    "right turned wrong by reconsidering": "reflection/inverse_rate",
    "cut at the length limit": "clipped_ratio",
}
COLUMNS = ("base", "final", "final_reflection_banned")
"""The evaluations of a run, in the order of a table."""


def mean_and_range(values: Sequence[float | None]) -> str:
    """A share over seeds: the mean, and the range where they differ; "-" where no seed has it."""
    known = [value for value in values if value is not None and value == value]
    if not known:
        return "-"
    mean, low, high = (f"{value:.1%}" for value in (statistics.mean(known), min(known), max(known)))
    return mean if low == high else f"{mean} [{low}, {high}]"


def table_rows(result: dict[str, float]) -> dict[str, str]:
    """Label -> key of every share that a table shows of one split's result, its maj@k and pass@k included."""
    sampled = [key for key in result if key.startswith(("maj@", "pass@", "pass_blind@")) and not key.endswith("@1")]
    return ROWS | {key.replace("_blind", "") + ", format-blind" * ("_blind" in key): key for key in sampled}


def print_results(results: dict[str, Any], *, intervals: Mapping[str, Mapping[str, Intervals]] | None = None) -> None:
    """Prints base, final and final-without-reflection results of every split.

    intervals: evaluation -> split -> metric -> (low, high), shown in place of the standard error.
    """
    console = Console()
    for split in results.get("final", {}):
        columns = {when: results[when][split] for when in COLUMNS if when in results}
        ranges = {when: (intervals or {}).get(when, {}).get(split, {}) for when in columns}
        console.print(_build_table(split, columns, ranges))


def _build_table(split: str, columns: dict[str, dict[str, float]], ranges: dict[str, Intervals]) -> Table:
    first = next(iter(columns.values()))
    table = Table(title=f"held-out {split}: {first['num_problems']} problems")
    table.add_column("")
    for when in columns:
        table.add_column(when.replace("_", " "), justify="right")
    for label, key in table_rows(first).items():
        cells = [
            _percent(column.get(key), column.get(f"{key}_se"), ranges[when].get(key))
            for when, column in columns.items()
        ]
        table.add_row(label, *cells)
    table.add_row("mean length, tokens", *(f"{column['mean_length']:.0f}" for column in columns.values()))
    return table


def _percent(value: float | None, error: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or value != value:
        return "-"
    if interval is not None:
        return f"{value:.1%} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return f"{value:.1%}" + (f" ± {error:.1%}" if error is not None and error == error else "")


def print_comparison(comparisons: Sequence[Comparison]) -> None:
    """Prints a table a split: both results, their difference with its 95 % interval, and the p-value."""
    console = Console()
    for split, rows in groupby(comparisons, key=lambda row: row.split):
        rows = list(rows)
        table = Table(title=f"{split}: {rows[0].num_problems} problems in both")
        for name in ("", "first", "second", "difference [95 %]", "p"):
            table.add_column(name, justify="left" if not name else "right", no_wrap=True)
        for row in rows:
            table.add_row(*_comparison_cells(row))
        console.print(table)
    console.print("paired over problems; p: sign flips, greedy: exact McNemar; not corrected for the number of rows")


def _comparison_cells(row: Comparison) -> list[str]:
    is_length = row.metric == "mean_length"
    scale, unit, places = (1, "", 1) if is_length else (100, " %", 1)
    label = "mean length, tokens" if is_length else row.metric.replace("_", " ")
    values = [f"{scale * value:.{places}f}{unit}" for value in (row.first, row.second)]
    interval = f"[{scale * row.low:+.{places}f}, {scale * row.high:+.{places}f}]"
    p_value = "< 0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}"
    return [label, *values, f"{scale * row.difference:+.{places}f} {interval}", p_value]
