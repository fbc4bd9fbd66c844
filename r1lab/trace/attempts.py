"""Arithmetic in completions: equations, and the tries of a search with their checks.

In the number-search tasks a try is one operation after the other, joined by commas, and its check, the distance to the
target: `3 + 5 = 8 , 8 * 7 = 56 off 32` tries `( 3 + 5 ) * 7`, and `off 0` is a hit. A chain that begins with the whole
expression (`( 3 + 5 ) * 7 = 8 * 7 = 56 off 32`) is the same try. The check is the policy's own statement.
"""

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from r1lab.trace.words import Reflection, find_reflections, lower


class Equation(NamedTuple):
    """A chain of equalities."""

    expression: str
    """Left of the first `=`, as written."""
    value: int | float
    """Right of the last `=`."""
    off: int | float | None
    """Distance to the target by the policy's own check; None: not checked."""
    start: int
    end: int
    """Behind the check, if there is one."""


class Attempt(NamedTuple):
    """One try of a search trace, with its check."""

    expression: str
    """What is tried, as one expression: `( 3 + 5 ) * 7`."""
    value: int | float
    """Right of the last `=`: what the policy says the expression is worth."""
    off: int | float
    """Distance to the target by the policy's own check; 0: it calls the try a hit."""
    reconsidered: bool
    """A reflective word follows before the next attempt (or the end of the text)."""
    start: int
    """Of the first step, in characters."""
    end: int
    """Behind the check."""


MAX_STEPS = 16
"""Of one try; of a longer row of equations the last ones are taken."""
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
# A check, or a maximal run of arithmetic on one line: maximal, so the scan never goes back over it. Both begin in one
# set of characters, which the scanner searches fast.
_CHECK_OR_RUN = re.compile(
    r"[o0-9(](?:"
    rf"(?<=\bo)ff[ \t]{{0,3}}:?[ \t]{{0,3}}(?P<off>-?{_NUMBER})(?![0-9.]*[0-9])"
    r"|(?<=[0-9(])[0-9()+\-*/=.×÷− \t]*)"
)
# Two numbers side by side: a new expression begins (`3 5 7 3 + 5 = 8` lists the numbers, then tries), also behind a
# full stop.
_NEW_EXPRESSION = re.compile(r"(?<=[0-9)])(?:[ \t]*\.)?[ \t]+(?=[0-9(])")
_OPERATION = re.compile(r"[0-9)][ \t]*[+\-*/×÷−]")
_VALUE = re.compile(rf"[-−]?[ \t]?{_NUMBER}")
_OPERAND = re.compile(_NUMBER)
_COMMA = re.compile(r"[ \t.]{0,3},[ \t]{0,3}")


def parse_equations(text: str) -> list[Equation]:
    """Every chain of equalities that works something out, in order; nothing raises. Time is linear in the text.

    A check belongs to the chain before it; one without a chain is noise.
    """
    found: list[Equation] = []
    for match in _CHECK_OR_RUN.finditer(lower(text)):
        if match["off"] is None:
            found += _chains(match.group(), match.start())
        elif found and found[-1].off is None:
            found[-1] = found[-1]._replace(off=abs(_number(match["off"])), end=match.end())
    return found


def parse_attempts(
    text: str, equations: Sequence[Equation] | None = None, reflections: Sequence[Reflection] | None = None
) -> list[Attempt]:
    """The tries of a search trace, in order: its checked equations, with the steps that lead to them.

    Text that is no search trace has no attempts; nothing raises. equations, reflections: of the text, where they are
    known already.
    """
    found = _tries(text, parse_equations(text) if equations is None else equations)
    if not found:
        return []
    words = [one.start for one in (find_reflections(text) if reflections is None else reflections)]
    ends = [steps[-1].end for steps in found]
    limits = [steps[0].start for steps in found[1:]] + [len(text)]
    return [
        Attempt(
            _join(steps),
            steps[-1].value,
            steps[-1].off,
            bisect_left(words, end) < bisect_left(words, limit),
            steps[0].start,
            end,
        )
        for steps, end, limit in zip(found, ends, limits, strict=True)
    ]


def _tries(text: str, equations: Iterable[Equation]) -> list[list[Equation]]:
    """Each checked equation with the steps before it, which nothing but a comma divides from one another."""
    found = []
    steps: deque[Equation] = deque(maxlen=MAX_STEPS)
    for one in equations:
        if steps and not _COMMA.fullmatch(text, steps[-1].end, one.start):
            steps.clear()
        steps.append(one)
        if one.off is not None:
            found.append(list(steps))
            steps.clear()
    return found


def _join(steps: Sequence[Equation]) -> str:
    """The expression that the steps work out: an operand that is an earlier result stands for the step before it."""
    results: dict[str, list[str]] = {}

    def put_in(operand: re.Match) -> str:
        waiting = results.get(operand.group())
        return f"( {waiting.pop()} )" if waiting else operand.group()

    for one in steps[:-1]:
        expression = _OPERAND.sub(put_in, one.expression)
        results.setdefault(write_value(one.value), []).append(expression)
    return _OPERAND.sub(put_in, steps[-1].expression)


def write_value(value: int | float) -> str:
    """As texts write it: whole numbers without a point."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def _chains(run: str, offset: int) -> list[Equation]:
    """The chains in a run of arithmetic."""
    if "=" not in run:
        return []
    starts = [0, *(match.end() for match in _NEW_EXPRESSION.finditer(run))]
    chains = []
    for start, end in zip(starts, [*starts[1:], len(run)], strict=True):
        first, *others = run[start:end].split("=")
        if not others or not _OPERATION.search(first):
            continue
        value = others[-1].strip(" \t.")
        if _VALUE.fullmatch(value):
            chains.append(Equation(first.strip(), _number(value), None, offset + start, offset + end))
    return chains


def _number(digits: str) -> int | float:
    digits = digits.replace("−", "-").replace(" ", "").replace("\t", "")
    return float(digits) if "." in digits else int(digits)
