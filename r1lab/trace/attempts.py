"""Arithmetic in completions: equations, and the tries of a search with their checks.

In the number-search tasks a try is a chain of equalities followed by its check, the distance to the target:
`( 3 + 5 ) * 7 = 8 * 7 = 56 off 32`, and `off 0` is a hit. A try with a step that the game forbids has no value and no
distance: `( 9 / 2 ) + 3 = fails`; it is a miss by any distance. The check is the policy's own statement.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from r1lab.trace.words import Reflection, find_reflections, lower


class Equation(NamedTuple):
    """A chain of equalities."""

    expression: str
    """Left of the first `=`, as written."""
    value: int | float | None
    """Right of the last `=`; None where it says that a step is forbidden."""
    off: int | float | None
    """Distance to the target by the policy's own check, infinite where a step is forbidden; None: not checked."""
    start: int
    end: int
    """Behind the check, if there is one."""


class Attempt(NamedTuple):
    """One try of a search trace, with its check."""

    expression: str
    """Left of the first `=`, as written."""
    value: int | float | None
    """Right of the last `=`: what the policy says the expression is worth. None: it says that a step is forbidden."""
    off: int | float
    """Distance to the target by the policy's own check; 0: it calls the try a hit. Infinite without a value."""
    reconsidered: bool
    """A reflective word follows before the next attempt (or the end of the text)."""
    start: int
    """Of the chain, in characters."""
    end: int
    """Behind the check."""


_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
# A check, or a step that the game forbids, or a maximal run of arithmetic on one line: maximal, so the scan never goes
# back over it. All begin in one set of characters, which the scanner searches fast.
_CHECK_OR_RUN = re.compile(
    r"[of0-9(](?:"
    rf"(?<=\bo)ff[ \t]{{0,3}}:?[ \t]{{0,3}}(?P<off>-?{_NUMBER})(?![0-9.]*[0-9])"
    r"|(?<=\bf)(?P<fails>ails)\b"
    r"|(?<=[0-9(])[0-9()+\-*/=.×÷− \t]*)"
)
# Two numbers side by side: a new expression begins (`3 5 7 3 + 5 = 8` lists the numbers, then tries), also behind a
# full stop.
_NEW_EXPRESSION = re.compile(r"(?<=[0-9)])(?:[ \t]*\.)?[ \t]+(?=[0-9(])")
_OPERATION = re.compile(r"[0-9)][ \t]*[+\-*/×÷−]")
_VALUE = re.compile(rf"[-−]?[ \t]?{_NUMBER}")


def parse_equations(text: str) -> list[Equation]:
    """Every chain of equalities that works something out, in order; nothing raises. Time is linear in the text.

    A check belongs to the chain before it; one without a chain is noise.
    """
    found: list[Equation] = []
    is_open = False  # the last chain has no check yet
    for match in _CHECK_OR_RUN.finditer(lower(text)):
        if match["off"] is None and match["fails"] is None:
            chains = _chains(match.group(), match.start())
            found += chains
            is_open |= bool(chains)
        elif is_open and (found[-1].value is None) == (match["fails"] is not None):
            if match["fails"] is not None and found[-1].end != match.start():
                continue
            off = math.inf if match["off"] is None else abs(_number(match["off"]))
            found[-1] = found[-1]._replace(off=off, end=match.end())
            is_open = False
    return [equation for equation in found if equation.value is not None or equation.off is not None]


def parse_attempts(
    text: str, equations: Sequence[Equation] | None = None, reflections: Sequence[Reflection] | None = None
) -> list[Attempt]:
    """The tries of a search trace, in order: its checked equations.

    Text that is no search trace has no attempts; nothing raises. equations, reflections: of the text, where they are
    known already.
    """
    found = [one for one in (parse_equations(text) if equations is None else equations) if one.off is not None]
    if not found:
        return []
    words = [one.start for one in (find_reflections(text) if reflections is None else reflections)]
    limits = [one.start for one in found[1:]] + [len(text)]
    return [
        Attempt(
            one.expression,
            one.value,
            one.off,
            bisect_left(words, one.end) < bisect_left(words, limit),
            one.start,
            one.end,
        )
        for one, limit in zip(found, limits, strict=True)
    ]


def _chains(run: str, offset: int) -> list[Equation]:
    """The chains in a run of arithmetic; the last one may still lack its value (`3 / 2 =`), which is None then."""
    if "=" not in run:
        return []
    starts = [0, *(match.end() for match in _NEW_EXPRESSION.finditer(run))]
    chains = []
    for start, end in zip(starts, [*starts[1:], len(run)], strict=True):
        first, *others = run[start:end].split("=")
        if not others or not _OPERATION.search(first):
            continue
        value = others[-1].strip(" \t.")
        is_number = _VALUE.fullmatch(value) is not None
        if is_number or (not value and end == len(run)):
            number = _number(value) if is_number else None
            chains.append(Equation(first.strip(), number, None, offset + start, offset + end))
    return chains


def _number(digits: str) -> int | float:
    digits = digits.replace("−", "-").replace(" ", "").replace("\t", "")
    return float(digits) if "." in digits else int(digits)
