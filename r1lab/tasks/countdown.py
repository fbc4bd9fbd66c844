"""Countdown-style problems with controllable difficulty.

Two families share one question, *make the target from these numbers*:

- `pick_two`: choose two of `n` numbers whose sum or difference is the target. Difficulty is `n`.
- `countdown`: the numbers game with every number used once and + - * /. Difficulty is `n`.

Problems are split by a hash of their numbers and target, whatever the order in which the numbers are shown, so no
problem of the test split is ever seen in pretraining or in RL.
"""

import random
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations

from r1lab.tasks.expressions import OPS, Expression, combine, distance, evaluate, random_expression, work_out_and_check

MAX_NUMBER = {"pick_two": 20, "countdown": 12}
MAX_TARGET = 40
TEST_SHARE = 10
"""One problem in `TEST_SHARE` belongs to the test split."""


def split_of(key: str) -> str:
    """The split of what `key` names, by its hash: "test" for one in `TEST_SHARE`, else "train"."""
    return "test" if int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) % TEST_SHARE == 0 else "train"


def check_split(split: str) -> None:
    """Raises ValueError for a name that is no split's."""
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; use 'train' or 'test'")


@dataclass(frozen=True, slots=True)
class Problem:
    """Make `target` from `numbers`."""

    family: str
    """"pick_two" or "countdown"."""
    numbers: tuple[int, ...]
    target: int
    solution: Expression
    """One expression that reaches the target; there may be others."""

    @property
    def num_used(self) -> int | None:
        """How many of the numbers an answer uses; None = each of them."""
        return 2 if self.family == "pick_two" else None

    @property
    def prompt(self) -> str:
        task = "pick two of" if self.family == "pick_two" else "use all of"
        return f"User : {task} {' '.join(map(str, self.numbers))} to make {self.target} . Assistant :"

    @property
    def split(self) -> str:
        """The problem's split, "test" or "train", the same for every order of the numbers."""
        return split_of(f"{self.family} {sorted(self.numbers)} {self.target}")

    def miss(self, expression: Expression) -> int:
        """How far an expression is off the target; 0 is a hit."""
        return distance(expression, self.target)

    def write_attempt(self, expression: Expression) -> str:
        """A try worked out, and its check: `3 + 5 = 8 , 8 * 7 = 56 off 24 .`"""
        return work_out_and_check(expression, self.target)

    def candidates(self) -> list[Expression]:
        """Tries in reading order; one of them hits. Raises ValueError for Countdown with more than three numbers, whose
        hundreds have no order."""
        if self.family == "pick_two":
            return scan_pairs(self.numbers)
        if len(self.numbers) != 3:
            raise ValueError(f"{len(self.numbers)} Countdown numbers have no reading order; guess")
        return scan_triple(self)


def draw_problem(rng: random.Random, family: str, n: int, split: str) -> Problem:
    """A random problem of `n` numbers from one split.

    Raises:
        ValueError: unknown family or split, or `n` outside 2..6.
    """
    if family not in MAX_NUMBER:
        raise ValueError(f"unknown family {family!r}; use one of {sorted(MAX_NUMBER)}")
    check_split(split)
    if not 2 <= n <= 6:
        raise ValueError(f"n={n} numbers; use 2 to 6")
    while True:
        numbers = tuple(rng.randint(1, MAX_NUMBER[family]) for _ in range(n))
        used = rng.sample(numbers, 2) if family == "pick_two" else list(numbers)
        solution = random_expression(rng, used, "+-" if family == "pick_two" else "+-*/")
        problem = Problem(family, numbers, evaluate(solution), solution)
        if problem.target <= MAX_TARGET and problem.split == split:
            return problem


def scan_pairs(numbers: tuple[int, ...]) -> list[Expression]:
    """Every candidate answer of a pick-two problem, in reading order: the sum, then the difference, of each pair."""
    candidates = []
    for a, b in combinations(numbers, 2):
        candidates.append(("+", a, b))
        high, low = max(a, b), min(a, b)
        if combine("-", high, low) is not None:
            candidates.append(("-", high, low))
    return candidates


def finish(left: Expression, right: Expression, target: int) -> Expression:
    """The two parts combined so as to come nearest to the target: people have a feeling for the last step."""
    orders = [(op, *pair) for op in OPS for pair in ((left, right), (right, left))]
    allowed = [draw for draw in orders if combine(draw[0], evaluate(draw[1]), evaluate(draw[2])) is not None]
    return min(allowed, key=lambda draw: distance(draw, target))


def guess(rng: random.Random, problem: Problem) -> Expression:
    """A try at a Countdown problem: a draw of the rules, its last step replaced by the one that comes nearest."""
    _, left, right = random_expression(rng, list(problem.numbers))
    if isinstance(left, int):
        left, right = right, left
    return finish(left, right, problem.target)


def scan_triple(problem: Problem) -> list[Expression]:
    """Tries at a Countdown problem of three numbers in reading order: each pair combined in each way, and finished with
    the third. If the problem can be solved, one of them does."""
    tries = []
    for i, j in combinations(range(3), 2):
        rest = problem.numbers[3 - i - j]
        high, low = sorted((problem.numbers[i], problem.numbers[j]), reverse=True)
        for op in OPS:
            first = (op, high, low) if op in "-/" else (op, problem.numbers[i], problem.numbers[j])
            if combine(*first) is not None:
                tries.append(finish(first, rest, problem.target))
    return tries
