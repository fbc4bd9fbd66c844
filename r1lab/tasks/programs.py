"""Small programs: write the function that two examples show, `f ( 2 ) = 7 and f ( 5 ) = 16`.

The hidden function is linear, its difficulty the number of operations (`x + 5` has one, `x * 3 + 1` two). Two examples
determine it, and other arguments test it. The answer is Python, `def f ( x ) : return x * 3 + 1`, and is scored by
running it.

Problems are split by a hash of their examples, whatever the order in which they are shown.
"""

import random
from dataclasses import dataclass
from typing import ClassVar

from r1lab.tasks.countdown import check_split, split_of
from r1lab.tasks.expressions import MAX_VALUE, Expression, distance, work_out, work_out_and_check

MAX_SLOPE = 9
MAX_OFFSET = 20
MAX_ARGUMENT = 12
HIDDEN_ARGUMENTS = (0, 11, 17, 30)
"""What a program is tested on besides its examples."""


@dataclass(frozen=True, slots=True)
class Program:
    """`x * slope + offset`."""

    slope: int
    offset: int

    def __call__(self, x: int) -> int:
        return x * self.slope + self.offset

    def at(self, x: int) -> Expression:
        """What is to be worked out for one argument."""
        body = x if self.slope == 1 else ("*", x, self.slope)
        return body if self.offset == 0 else ("-" if self.offset < 0 else "+", body, abs(self.offset))

    @property
    def source(self) -> str:
        factor = "" if self.slope == 1 else f" * {self.slope}"
        term = "" if self.offset == 0 else f" {'-' if self.offset < 0 else '+'} {abs(self.offset)}"
        return f"def f ( x ) : return x{factor}{term}"


@dataclass(frozen=True, slots=True)
class Riddle:
    """Which program maps the arguments of two examples to their values?"""

    solution: Program
    arguments: tuple[int, int]
    """Of the two examples, as shown."""
    family: ClassVar[str] = "program"

    @property
    def examples(self) -> list[tuple[int, int]]:
        """(argument, value) of both examples."""
        return [(x, self.solution(x)) for x in self.arguments]

    @property
    def shown(self) -> str:
        return " and ".join(f"f ( {x} ) = {y}" for x, y in self.examples)

    @property
    def prompt(self) -> str:
        return f"User : write {self.shown} . Assistant :"

    @property
    def split(self) -> str:
        """The riddle's split, "test" or "train", the same for both orders of the examples."""
        return split_of(f"program {sorted(self.examples)}")

    @property
    def tests(self) -> list[dict]:
        """What `rewards.code_reward` runs: the examples, and arguments that were not shown."""
        arguments = (*self.arguments, *HIDDEN_ARGUMENTS)
        return [{"type": "call", "entry_point": "f", "args": [x], "expected": self.solution(x)} for x in arguments]

    def candidates(self) -> list[Program]:
        """The programs that fit the first example, by slope, as far as both examples stay in 1..MAX_VALUE."""
        (x, y), (other, _) = self.examples
        fitting = (Program(slope, y - x * slope) for slope in range(1, MAX_SLOPE + 1))
        return [
            one
            for one in fitting
            if one != Program(1, 0) and x * one.slope <= MAX_VALUE and other * one.slope <= MAX_VALUE
            if abs(one.offset) <= MAX_VALUE and 1 <= one(other) <= MAX_VALUE
        ]

    def miss(self, program: Program) -> int:
        """How far a program is off in the second example."""
        x, y = self.examples[1]
        return distance(program.at(x), y)

    def write_attempt(self, program: Program) -> str:
        """The offset fitted to the first example, then the check on the second:
        `2 * 3 = 6 , 7 - 6 = 1 : 5 * 3 = 15 , 15 + 1 = 16 off 0 .`"""
        (x, y), (other, value) = self.examples
        part = x if program.slope == 1 else ("*", x, program.slope)
        fit = work_out(("-", y, part) if program.offset > 0 else ("-", part, y) if program.offset < 0 else part)
        return f"{fit} : {work_out_and_check(program.at(other), value)}"


def draw_riddle(rng: random.Random, num_operations: int, split: str) -> Riddle:
    """A random riddle whose program has 1 or 2 operations, from one split.

    Raises:
        ValueError: unknown split, or another number of operations.
    """
    if num_operations not in (1, 2):
        raise ValueError(f"num_operations={num_operations}; use 1 or 2")
    check_split(split)
    while True:
        slope = rng.randint(2, MAX_SLOPE)
        offset = rng.choice((-1, 1)) * rng.randint(1, MAX_OFFSET)
        if num_operations == 1:
            slope, offset = rng.choice(((slope, 0), (1, offset)))
        riddle = Riddle(Program(slope, offset), tuple(rng.sample(range(1, MAX_ARGUMENT + 1), 2)))
        in_range = all(1 <= y <= MAX_VALUE for _, y in riddle.examples)
        if in_range and riddle.solution in riddle.candidates() and riddle.split == split:
            return riddle
