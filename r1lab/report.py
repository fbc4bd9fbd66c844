"""The closing table of a run: base against final, split by split."""

from typing import Any

from rich.console import Console
from rich.table import Table

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


def table_rows(result: dict[str, float]) -> dict[str, str]:
    """Label -> key of every share that a table shows of one split's result, its maj@k and pass@k included."""
    sampled = [key for key in result if key.startswith(("maj@", "pass@", "pass_blind@")) and not key.endswith("@1")]
    return ROWS | {key.replace("_blind", ", format-blind,"): key for key in sampled}


def print_results(results: dict[str, Any]) -> None:
    """Prints base, final and final-without-reflection results of every split."""
    console = Console()
    for split in results.get("final", {}):
        columns = {when: results[when][split] for when in COLUMNS if when in results}
        console.print(_build_table(split, columns))


def _build_table(split: str, columns: dict[str, dict[str, float]]) -> Table:
    first = next(iter(columns.values()))
    table = Table(title=f"held-out {split}: {first['num_problems']} problems")
    table.add_column("")
    for when in columns:
        table.add_column(when.replace("_", " "), justify="right")
    for label, key in table_rows(first).items():
        table.add_row(label, *(_percent(column.get(key), column.get(f"{key}_se")) for column in columns.values()))
    table.add_row("mean length, tokens", *(f"{column['mean_length']:.0f}" for column in columns.values()))
    return table


def _percent(value: float | None, error: float | None) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.1%}" + (f" ± {error:.1%}" if error is not None and error == error else "")
