"""The embedded task families as `datasets.Dataset`, in the columns that the reward functions read."""

import random
from collections.abc import Callable

from datasets import Dataset

from r1lab.tasks.arithmetic import draw_question
from r1lab.tasks.countdown import draw_problem
from r1lab.tasks.expressions import render
from r1lab.tasks.programs import draw_riddle

TASKS: dict[str, dict[int, float]] = {
    "pick_two": {3: 0.55, 4: 0.40, 5: 0.05},
    "countdown": {3: 0.6, 4: 0.4},
    "arithmetic": {3: 0.5, 4: 0.5},
    "program": {1: 0.3, 2: 0.7},
}
"""Task -> share of each difficulty (how many numbers; of a program: operations) in training."""


MAX_REPEATS = 2000
"""So many known problems in a row mean that there are hardly any new ones."""


def _search_row(family: str) -> Callable[[random.Random, int, str], dict]:
    def draw(rng: random.Random, n: int, split: str) -> dict:
        problem = draw_problem(rng, family, n, split)
        return {
            "prompt": problem.prompt,
            "solution": render(problem.solution),
            "numbers": list(problem.numbers),
            "target": problem.target,
            "num_used": problem.num_used,
            "difficulty": n,
        }

    return draw


def _arithmetic_row(rng: random.Random, n: int, split: str) -> dict:
    question = draw_question(rng, n, split)
    return {"prompt": question.prompt, "solution": str(question.answer), "difficulty": n}


def _program_row(rng: random.Random, num_operations: int, split: str) -> dict:
    riddle = draw_riddle(rng, num_operations, split)
    return {
        "prompt": riddle.prompt,
        "solution": riddle.solution.source,
        "tests": riddle.tests,
        "difficulty": num_operations,
    }


_ROWS = {
    "pick_two": _search_row("pick_two"),
    "countdown": _search_row("countdown"),
    "arithmetic": _arithmetic_row,
    "program": _program_row,
}


def load_task(name: str, split: str, num_rows: int, seed: int, difficulty: int | None = None) -> Dataset:
    """Distinct problems of one split.

    Args:
        name: a key of `TASKS`.
        split: "train" or "test"; no problem is in both.
        num_rows: how many rows.
        seed: the same seed draws the same rows.
        difficulty: one difficulty only; None = the training shares.

    Returns:
        A dataset with `prompt`, `solution`, `difficulty` and what the task's reward reads.

    Raises:
        ValueError: unknown task, or more rows than the task has distinct problems.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; use one of {', '.join(TASKS)}, or give dataset_name")
    rng = random.Random(f"{name} {split} {seed} {difficulty}")
    shares = TASKS[name] if difficulty is None else {difficulty: 1.0}
    rows: dict[str, dict] = {}
    repeats = 0
    while len(rows) < num_rows:
        row = _ROWS[name](rng, rng.choices(list(shares), weights=shares.values())[0], split)
        key = f"{sorted(row['numbers'])} {row['target']}" if "numbers" in row else row["prompt"]
        repeats = repeats + 1 if key in rows else 0
        rows.setdefault(key, row)
        if repeats > MAX_REPEATS:
            raise ValueError(
                f"{name!r} has only about {len(rows)} distinct {split} problems of difficulty {difficulty or 'any'}; "
                f"ask for fewer than {num_rows}"
            )
    return Dataset.from_list(list(rows.values()))
