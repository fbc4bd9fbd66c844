"""What to evaluate on: held-out problems by split name, each with the reward that judges them."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from r1lab.loading import EVAL_SEED, LoadingError, load_rows, read_dataset
from r1lab.tasks import TASKS, load_task

LEVEL_COLUMNS = ("difficulty", "level")
"""A dataset with one of these is split by it; MATH writes "Level 1" to "Level 5"."""
STOP_SEQUENCES = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
"""What begins after the function that a base model was asked to finish (Chen et al., 2021, "Evaluating Large Language
Models Trained on Code", section 3)."""
CHAT_REQUEST = "Complete this Python function. Answer with the whole function in one ```python block.\n\n"
_HUMAN_EVAL = {"prompt", "test", "entry_point"}
MAX_SPLITS = 20


def load_problems(names: Sequence[str], num_problems: int, script: Any, tokenizer: Any) -> dict[str, Dataset]:
    """Held-out rows of embedded tasks and of datasets, by `<task>/<difficulty>`, or by the dataset's name alone.

    A dataset is a hub id or a local .jsonl or .parquet file. Rows with `prompt`, `test` and `entry_point` are read as
    HumanEval's, all others as `load_rows` does. num_problems: of each split, the first ones. script: what `load_rows`
    reads.

    Raises:
        LoadingError: no such dataset, a needed column is missing, or a level column with too many values.
        ValueError: an embedded task has fewer problems.
    """
    splits: dict[str, Dataset] = {}
    for name in names:
        if name in TASKS:
            for difficulty in TASKS[name]:
                splits[f"{name}/n{difficulty}"] = load_task(name, "test", num_problems, EVAL_SEED, difficulty)
        else:
            splits |= _load_dataset(name, num_problems, script, tokenizer)
    return splits


def choose_reward(rows: Dataset) -> str:
    """The reward that fits a split's columns, by name: countdown, code or accuracy."""
    columns = set(rows.column_names)
    if {"numbers", "target"} <= columns:
        return "countdown"
    return "code" if columns & {"test", "tests", "test_list", "verification_info"} else "accuracy"


def _load_dataset(name: str, num_problems: int, script: Any, tokenizer: Any) -> dict[str, Dataset]:
    raw = read_dataset(name, script)
    if set(raw.column_names) >= _HUMAN_EVAL:
        is_chat = getattr(tokenizer, "chat_template", None) is not None
        rows = build_human_eval(raw, is_chat=is_chat)
    else:
        rows = load_rows(name, script, tokenizer)
    short = name.rstrip("/").rpartition("/")[2].partition(".")[0]
    level = next((column for column in LEVEL_COLUMNS if column in rows.column_names), None)
    if level is None:
        return {short: _first(rows, num_problems)}
    values = sorted(set(rows[level]), key=str)
    if len(values) > MAX_SPLITS:
        raise LoadingError(
            f"dataset {name!r}: column {level!r} has {len(values)} values, more than {MAX_SPLITS}; drop it"
        )
    indices = {value: [i for i, one in enumerate(rows[level]) if one == value] for value in values}
    return {
        f"{short}/{str(value).lower().replace(' ', '_')}": _first(rows.select(indices[value]), num_problems)
        for value in values
    }


def _first(rows: Dataset, count: int) -> Dataset:
    return rows.select(range(min(count, len(rows))))


def build_human_eval(rows: Dataset, *, is_chat: bool) -> Dataset:
    """HumanEval's rows as problems.

    A base model continues the function's stub as it stands, without white space at its end (a model never saw a line
    end there before the indentation), and is cut at the first of `STOP_SEQUENCES`. A chat model is asked for the whole
    function in a code block. Adds the columns `stub` and, for a base model, `stop_sequences` (see
    `judge_completions`).
    """

    def build(row: dict[str, Any]) -> dict[str, Any]:
        stub = row["prompt"].rstrip()
        if not is_chat:
            return {"prompt": stub, "stub": stub, "stop_sequences": STOP_SEQUENCES}
        request = f"{CHAT_REQUEST}```python\n{stub}\n```"
        return {"prompt": [{"role": "user", "content": request}], "stub": stub}

    built = [row | build(row) for row in rows]
    return Dataset.from_list(built)
