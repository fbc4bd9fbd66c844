"""What a completion does, by rule and from its arithmetic, whatever words it uses.

After Gandhi et al., "Cognitive Behaviors that Enable Self-Improving Reasoners" (arXiv 2503.01307), who ask a language
model to find verification, backtracking, subgoal setting and backward chaining; here three of them and enumeration are
read off the equations, so that they cost nothing and always mean the same. Each rule errs towards not seeing: prose
without equations shows none of them.
"""

import re
from collections.abc import Sequence, Set
from typing import NamedTuple

from r1lab.trace.attempts import Attempt, Equation, parse_attempts, parse_equations, write_value

ENUMERATION_LENGTH = 4
"""So many tries in a row that go through the candidates in order; of tries in random order one row in 24 does."""

_DIGITS = r"(?<![0-9])([0-9]{1,15})"
_INTEGERS = re.compile(r"(?<![0-9])[0-9]{1,15}(?:[ ,]{1,3}[0-9]{1,15})+(?![0-9])")
_OPERAND = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_STEP = re.compile(rf"{_DIGITS}[ \t]*([+\-*/×÷−])[ \t]*{_DIGITS}(?![0-9])")
_INNER_STEP = re.compile(rf"\([ \t]*{_STEP.pattern}[ \t]*\)")
_SIGNS = str.maketrans("×÷−", "*/-")
_OPS = "+-*/"
_INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}


class Behaviours(NamedTuple):
    """What one completion does."""

    verification: bool
    """A result is checked: held against the target, worked out again, or undone by the inverse operation."""
    backtracking: bool
    """A try is abandoned: its check misses, and another try follows."""
    enumeration: bool
    """`ENUMERATION_LENGTH` tries in a row go through the candidates in order: pairs of the given numbers in reading
    order, and for one pair + - * / in this order."""
    subgoals: bool
    """A result that is not yet the goal (not checked, none of the given numbers) is an operand later on."""


def given_numbers(prompt: str) -> list[str] | None:
    """The numbers that a prompt lists, as written: its longest row of integers; None without a row of two."""
    rows = [re.findall(r"[0-9]+", row) for row in _INTEGERS.findall(prompt)]
    return max(rows, key=len, default=None)


def find_behaviours(
    text: str,
    numbers: Sequence[str] | None = None,
    equations: Sequence[Equation] | None = None,
    tries: Sequence[Attempt] | None = None,
) -> Behaviours:
    """The behaviours of a completion. Time is linear in the text; nothing raises.

    numbers: the given ones in the order of the prompt (see `given_numbers`); None: in the order in which tries use
    them. equations: the text's, where they are known already.
    """
    equations = parse_equations(text) if equations is None else equations
    if not equations:
        return Behaviours(False, False, False, False)
    tries = parse_attempts(text, equations) if tries is None else tries
    return Behaviours(
        verification=bool(tries) or _works_out_again(equations),
        backtracking=any(one.off != 0 and one.expression != after.expression for one, after in zip(tries, tries[1:])),
        enumeration=_goes_in_order(tries, numbers),
        subgoals=_builds_on_a_result(equations, set(numbers or ())),
    )


def _works_out_again(equations: Sequence[Equation]) -> bool:
    seen: set[str] = set()
    undone: set[tuple[str, str, str, str]] = set()
    for one in equations:
        written = "".join(one.expression.translate(_SIGNS).split())
        step = _STEP.fullmatch(one.expression)
        result = write_value(one.value)
        parts = (step[1], step[2].translate(_SIGNS), step[3], result) if step else None
        if written in seen or parts in undone:
            return True
        seen.add(written)
        if parts:
            left, op, right, _ = parts
            undone.add((result, _INVERSE[op], right, left))
            if op in "+*":
                undone.add((result, _INVERSE[op], left, right))
    return False


def _goes_in_order(tries: Sequence[Attempt], numbers: Sequence[str] | None) -> bool:
    if len(tries) < ENUMERATION_LENGTH:
        return False
    if numbers is None:
        numbers = dict.fromkeys(word for one in tries for word in _OPERAND.findall(one.expression))
    places: dict[str, list[int]] = {}
    for index, number in enumerate(numbers):
        places.setdefault(number, []).append(index)
    length, before = 0, None
    for one in tries:
        place = _place(one.expression, places)
        length = length + 1 if before is not None and place is not None and place > before else int(place is not None)
        before = place
        if length >= ENUMERATION_LENGTH:
            return True
    return False


def _place(expression: str, places: dict[str, list[int]]) -> tuple[int, int, int] | None:
    """Where a try stands among the candidates, by what it works out first: (first number, second, operation)."""
    step = _INNER_STEP.search(expression) or _STEP.search(expression)
    if step is None:
        return None
    left, right = places.get(step[1], []), places.get(step[3], [])
    if step[1] == step[3]:  # the same number twice: two of its places
        right = right[1:]
    if not left or not right:
        return None
    low, high = sorted((left[0], right[0]))
    return low, high, _OPS.index(step[2].translate(_SIGNS))


def _builds_on_a_result(equations: Sequence[Equation], numbers: Set[str]) -> bool:
    results: set[str] = set()
    for one in equations:
        if not results.isdisjoint(_OPERAND.findall(one.expression)):
            return True
        if one.off is None and (result := write_value(one.value)) not in numbers:
            results.add(result)
    return False
