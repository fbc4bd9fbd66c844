"""`score FILE --reward NAME ...`: rewards and reasons for a file of completions."""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from rewards.cli.files import Row, check_kind, read_rows, write_rows
from rewards.registry import REWARDS, RewardFunction, load_reward

COMPLETION_COLUMNS = ("completion", "response", "output", "generation", "text")
PROMPT_COLUMNS = ("prompt", "problem", "question", "instruction")
CHUNK = 128
"""Rows scored at once, or more where one prompt has more."""
REASONS_SHOWN = 8


def add_score(commands: Any) -> None:
    parser = commands.add_parser("score", help="score a .jsonl or .parquet file of completions", allow_abbrev=False)
    parser.add_argument("file", type=Path, help="one completion a row, with its gold and other columns")
    parser.add_argument(
        "--reward", nargs="+", action="extend", required=True, metavar="NAME",
        help=f"{', '.join(REWARDS)}, or a dotted path",
    )  # fmt: skip
    parser.add_argument(
        "--option", nargs="+", action="extend", default=[], metavar="REWARD.OPTION=VALUE",
        help="fix an option of a reward, for example cosine.max_len=4096; values are JSON or else strings",
    )  # fmt: skip
    parser.add_argument(
        "--column", nargs="+", action="extend", default=[], metavar="NAME=COLUMN",
        help="read NAME (completion, prompt, solution, ...) from another column of the file",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="write the rows with their rewards and reasons, .jsonl or .parquet")
    parser.add_argument("--rows", action="store_true", help="print every row's rewards and reasons")
    parser.set_defaults(run=run_score)


def run_score(options: argparse.Namespace) -> int:
    """Scores the file, prints the summary, writes the output. Raises what the rewards raise for wrong columns."""
    if options.output:
        check_kind(options.output)
    functions = load_rewards(options.reward, options.option)
    rows = read_rows(options.file)
    columns = rename_columns(rows, options.column)
    results = score_rows(columns, functions, len(rows))
    console = Console()
    if options.rows:
        console.print(rows_table(results))
    console.print(summary_table(results, list(functions)))
    if options.output:
        write_rows(options.output, [row | result for row, result in zip(rows, results, strict=True)])
        console.print(Text(f"wrote {options.output}"), soft_wrap=True)  # a path that is cut in two cannot be copied
    return 0


def load_rewards(names: Sequence[str], options: Sequence[str]) -> dict[str, RewardFunction]:
    """Name -> function with its options fixed. Raises ValueError for an option that is no REWARD.OPTION=VALUE."""
    fixed: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in options:
        key, equals, value = text.partition("=")
        name, _, option = key.rpartition(".")
        if not equals or name not in fixed:
            raise ValueError(f"option {text!r}: write REWARD.OPTION=VALUE, for one of the rewards {', '.join(names)}")
        try:
            fixed[name][option] = json.loads(value)
        except json.JSONDecodeError:
            fixed[name][option] = value
    return {name: load_reward(name, **settings) for name, settings in fixed.items()}


def rename_columns(rows: Sequence[Row], renames: Sequence[str]) -> dict[str, list]:
    """The rows as columns, with "completions", and "prompts" where there is one. Raises TypeError without the first."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    for text in renames:
        name, _, source = text.partition("=")
        if source not in columns:
            raise TypeError(f"--column {text}: the file has no column {source!r}; it has {', '.join(columns)}")
        columns[name] = columns[source]
    completion = next((name for name in COMPLETION_COLUMNS if name in columns), None)
    if completion is None:
        raise TypeError(
            f"no column of completions: tried {', '.join(COMPLETION_COLUMNS)}; the file has {', '.join(columns)}; "
            "name it by --column completion=..."
        )
    columns["completions"] = columns.pop(completion)
    prompt = next((name for name in PROMPT_COLUMNS if name in columns), None)
    if prompt is not None:
        columns["prompts"] = columns.pop(prompt)
    return columns


def score_rows(columns: dict[str, list], functions: dict[str, RewardFunction], size: int) -> list[Row]:
    """Of each row the rewards by name, and what the functions logged about it, such as "accuracy_reason"."""
    results: list[Row] = [{} for _ in range(size)]
    progress = Progress(TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True)
    with progress:
        task = progress.add_task("", total=size)
        for start, end in chunks(columns.get("prompts"), size):
            part = {name: column[start:end] for name, column in columns.items()}
            for name, function in functions.items():
                logged: dict[str, list] = {}
                values = function(**part, log_extra=logged.__setitem__)
                for index, result in enumerate(results[start:end]):
                    result[name] = values[index]
                    result |= {column: entries[index] for column, entries in logged.items()}
            progress.update(task, completed=end)
    return results


def chunks(prompts: Sequence[Any] | None, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of about `CHUNK` rows each, not parting neighbours of one prompt: some rewards compare them."""
    start = 0
    for end in range(1, size + 1):
        if end == size or (end - start >= CHUNK and (prompts is None or prompts[end] != prompts[end - 1])):
            yield start, end
            start = end


def rows_table(results: Sequence[Row]) -> Table:
    names = dict.fromkeys(name for result in results for name in result)
    table = Table("row", *names)
    for number, result in enumerate(results):
        table.add_row(str(number), *(Text(_cell(result.get(name))) for name in names))
    return table


def summary_table(results: Sequence[Row], names: Sequence[str]) -> Table:
    """Of each reward: mean, lowest, highest, rows scored and skipped, and how often each reason came up."""
    table = Table("reward", "mean", "min", "max", "scored", "skipped", "reasons")
    table.columns[0].overflow = "fold"  # A name cut short would be of no use.
    for name in names:
        values = [result[name] for result in results if result[name] is not None]
        numbers = [f"{statistic(values):.4g}" if values else "-" for statistic in (fmean, min, max)]
        reasons = Counter(str(result[f"{name}_reason"]) for result in results if f"{name}_reason" in result)
        counted = "\n".join(f"{count} {reason}" for reason, count in reasons.most_common(REASONS_SHOWN))
        table.add_row(name, *numbers, str(len(values)), str(len(results) - len(values)), Text(counted))
    return table


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
