"""Cold-start traces of the embedded search tasks: long chains of thought that end right (DeepSeek-R1, section 2.3.1).

A trace tries, checks, says 'wait' after a miss and goes on until a try hits, in R1's template:

    <think> 14 + 6 = 20 off 13 . wait 14 - 6 = 8 off 1 . wait 13 - 6 = 7 off 0 . yes </think> <answer> 13 - 6 </answer>

The search is the one that the base has read (`corpus.search`): a guess, then the candidates in reading order; with four
Countdown numbers, which have hundreds, more guesses and the solution. One that leaves out what it has tried would have
to be remembered, which the base cannot (recipes/LOG.md). It says 'wait' at least once. Problems come from the training
split only.
"""

import random

from datasets import Dataset

from r1lab.tasks.corpus import search
from r1lab.tasks.countdown import Problem, draw_problem
from r1lab.tasks.datasets import MAX_REPEATS, TASKS
from r1lab.tasks.expressions import render

COLD_START_TASKS = ("pick_two", "countdown")
MAX_TRIES = 16
"""A search that is longer is drawn again: the trace has to fit in a completion."""


def write_trace(rng: random.Random, problem: Problem) -> str | None:
    """A completion for the problem; None when the search hit at once, or took more than `MAX_TRIES` tries."""
    tries = search(rng, problem)
    if not 2 <= len(tries) <= MAX_TRIES:
        return None
    work = " wait ".join(map(problem.write_attempt, tries))
    return f"<think> {work} yes </think> <answer> {render(tries[-1])} </answer>"


def load_cold_start(task: str, num_rows: int, seed: int) -> Dataset:
    """Traces of distinct training problems, in the task's shares of difficulty.

    Returns a dataset with `prompt`, `completion`, and what the task's reward reads: `solution` (the answer that the
    trace gives), `numbers`, `target`, `num_used`, `difficulty`. The same seed draws the same rows.

    Raises:
        ValueError: a task without traces, `num_rows` below 1, or more rows than there are distinct problems.
    """
    if task not in COLD_START_TASKS:
        raise ValueError(
            f"task {task!r} has no cold-start traces; use one of {', '.join(COLD_START_TASKS)}, give your own with "
            "--cold_start_dataset_name, or leave the stage cold_start out"
        )
    if num_rows < 1:
        raise ValueError(f"num_cold_start={num_rows}: write at least 1 trace, or leave the stage cold_start out")
    rng = random.Random(f"cold start {task} {seed}")
    rows: dict[str, dict] = {}
    repeats = 0
    while len(rows) < num_rows:
        difficulty = rng.choices(list(TASKS[task]), weights=TASKS[task].values())[0]
        problem = draw_problem(rng, task, difficulty, "train")
        completion = write_trace(rng, problem)
        key = f"{sorted(problem.numbers)} {problem.target}"
        repeats = repeats + 1 if completion is None or key in rows else 0
        if completion is not None:
            rows.setdefault(key, _row(problem, completion))
        if repeats > MAX_REPEATS:
            raise ValueError(f"num_cold_start={num_rows}: {task!r} has only about {len(rows)} problems to trace")
    return Dataset.from_list(list(rows.values()))


def _row(problem: Problem, completion: str) -> dict:
    return {
        "prompt": problem.prompt,
        "completion": completion,
        "solution": completion.rpartition("<answer> ")[2].removesuffix(" </answer>"),
        "numbers": list(problem.numbers),
        "target": problem.target,
        "num_used": problem.num_used,
        "difficulty": len(problem.numbers),
    }
