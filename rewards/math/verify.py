"""Does an answer equal the gold one? Exactly: numbers as fractions, everything else as normalised text."""

import math
import numbers
import re
from typing import Any

from rewards.math.extract import after_hashes, last_box
from rewards.math.numbers import parse_number
from rewards.text import INVISIBLE, is_blank

MAX_LENGTH = 4000
"""Characters of an answer; a longer one equals nothing."""

_MATH = re.compile(r"\$\$(.+)\$\$|\$(.+)\$|\\\((.+)\\\)|\\\[(.+)\\\]", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|operatorname)\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:[,;:!> ]|quad\b|qquad\b|left(?![a-z])|right(?![a-z]))|~")
_ASSIGNMENT = re.compile(r"([A-Za-z]) ?= ?([^=]+)", re.DOTALL)
_IDLE_SPACE = re.compile(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])")
_CHOICE = re.compile(r"\(([A-Za-z])\)")


def verify(gold: str, answer: str, *, timeout_s: float | None = None) -> bool:
    """Whether `answer` equals `gold`, both written by people or models. Never raises on any text.

    Numbers (`parse_number`) compare as exact fractions; a number never equals a text. Other answers compare as text:
    LaTeX spacing, `\\text{}`, math delimiters, a final period and, where there is no LaTeX command, case are ignored;
    spaces are kept between letters and digits (`1 2` is not `12`). `x = 3` equals `3`, but not `y = 3`; `(A)` equals
    `A`. A gold may also be a solution that ends in `#### N` or holds a `\\boxed{}`.

    Every comparison is linear in at most 4,000 characters, so timeout_s (seconds) cannot be exceeded and only its
    sign is checked: ValueError unless it is positive.
    """
    if timeout_s is not None and not timeout_s > 0:
        raise ValueError(f"timeout_s={timeout_s}; pass a positive number of seconds, or None")
    parsed = gold_answer(gold)
    if parsed is None or is_blank(answer) or max(len(parsed), len(answer)) > MAX_LENGTH:
        return False
    return _equal(_unwrap(parsed), _unwrap(answer))


def gold_answer(gold: Any) -> str | None:
    """The bare gold answer: of a number, a bare answer or a worked solution. None when there is none."""
    if isinstance(gold, numbers.Real) and not isinstance(gold, bool):
        return str(gold) if math.isfinite(gold) else None
    if not isinstance(gold, str):
        return None
    found = after_hashes(gold) if "####" in gold else last_box(gold) if "\\boxed" in gold else gold
    return None if found is None or is_blank(found) else found.strip()


def _equal(gold: str, answer: str) -> bool:
    gold_variable, gold = _split_assignment(gold)
    answer_variable, answer = _split_assignment(answer)
    if gold_variable and answer_variable and gold_variable != answer_variable:
        return False
    gold_value, value = parse_number(gold), parse_number(answer)
    if gold_value is not None or value is not None:
        return gold_value == value
    return normalize(gold) == normalize(answer)


def _split_assignment(text: str) -> tuple[str, str]:
    """("x", "3") of "x = 3"; ("", text) of anything else, an equation with two signs included."""
    match = _ASSIGNMENT.fullmatch(text)
    return (match[1], match[2].strip()) if match else ("", text)


def _unwrap(text: str) -> str:
    """Without math delimiters around the whole, invisible characters and a sentence's final period."""
    text = text.translate(INVISIBLE).strip()
    while match := _MATH.fullmatch(text):
        inner = next(group for group in match.groups() if group is not None).strip()
        if "$" in inner.replace("\\$", ""):
            break  # "$1$ and $2$" is not one formula.
        text = inner
    return text[:-1].rstrip() if text.endswith(".") else text


def normalize(text: str) -> str:
    """One spelling of a text answer; see `verify` for what it makes equal."""
    text = _TEXT.sub(r"\1", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text.replace("−", "-"))
    text = re.sub(r"\\([%$&#])", r"\1", text)
    text = " ".join(_SPACING.sub(" ", text).split())
    text = _IDLE_SPACE.sub("", text)
    if choice := _CHOICE.fullmatch(text):
        text = choice[1]
    return text if "\\" in text else text.casefold()
