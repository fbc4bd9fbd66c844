"""Arithmetic questions: the second verifiable family, and the skill that search-and-verify stands on."""

import random
from dataclasses import dataclass

from r1lab.tasks.countdown import MAX_NUMBER, split_of
from r1lab.tasks.expressions import Expression, evaluate, random_expression, render


@dataclass(frozen=True, slots=True)
class Question:
    """What is the value of `expression`?"""

    expression: Expression

    @property
    def answer(self) -> int:
        return evaluate(self.expression)

    @property
    def prompt(self) -> str:
        return f"User : what is {render(self.expression)} ? Assistant :"

    @property
    def split(self) -> str:
        """The question's split, "test" or "train".

        Two-number facts are all in train: they are the times table, not a generalisation.
        """
        if isinstance(self.expression[1], int) and isinstance(self.expression[2], int):
            return "train"
        return split_of(render(self.expression))


def draw_question(rng: random.Random, n: int, split: str) -> Question:
    """A random question with `n` numbers (2 to 4; the test split starts at 3).

    Raises:
        ValueError: `n` out of range for the split.
    """
    if not (2 if split == "train" else 3) <= n <= 4:
        raise ValueError(f"n={n} numbers in split {split!r}; use 2 to 4 for train, 3 or 4 for test")
    while True:
        numbers = [rng.randint(1, MAX_NUMBER["countdown"]) for _ in range(n)]
        question = Question(random_expression(rng, numbers))
        if question.split == split:
            return question
