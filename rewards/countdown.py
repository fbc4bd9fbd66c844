"""Countdown: reach the target with + - * / and the given numbers."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rewards.text import answer_block, check_length, completion_text, find_column

MAX_LENGTH = 1000
"""Characters of an expression; a longer one is not read."""
MAX_DEPTH = 50
"""Nested parentheses."""

SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})
DIGITS = frozenset("0123456789")


class ExpressionError(ValueError):
    """Why a text is no expression: `reason` is "empty", "too_long", "too_deep", "syntax" or "division_by_zero"."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Expression:
    value: Fraction
    numbers: tuple[int, ...]
    """The integers written, in order."""


def countdown_reward(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] = (),
    completion_ids: Sequence[Any] | None = None,
    *,
    target: Sequence[int | None] | None = None,
    numbers: Sequence[Sequence[int] | None] | None = None,
    num_used: Sequence[int | None] | int | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 where the one `<answer>` holds an expression that `check_expression` finds correct, 0.0 otherwise.

    Columns: `target`, and `numbers` (or `nums`), each row's given integers; `num_used`, how many of them to use: one
    number, or a column (None: all). A row whose target or numbers are missing or no integers gets None. log_extra,
    TRL's hook, gets each row's reason as the column "countdown_reason": "no_answer", "no_problem" for a row that gets
    None, or what `check_expression` says.

    Raises TypeError without those columns, ValueError for a column of another length.
    """
    size = len(completions)
    columns |= {"target": target, "numbers": numbers}
    targets = find_column(columns, ("target",), size)
    given = find_column(columns, ("numbers", "nums"), size)
    if num_used is None or isinstance(num_used, int):
        num_used = [num_used] * size
    rows = zip(completions, given, targets, check_length("num_used", num_used, size), strict=True)
    reasons = [_reason(completion_text(completion), *row) for completion, *row in rows]
    if log_extra is not None:
        log_extra("countdown_reason", reasons)
    return [None if reason == "no_problem" else float(reason == "correct") for reason in reasons]


def _reason(text: str, numbers: Sequence[Any] | None, target: Any, num_used: int | None) -> str:
    target = _integer(target)
    numbers = None if numbers is None else [_integer(number) for number in numbers]
    if target is None or numbers is None or None in numbers:
        return "no_problem"
    answer = answer_block(text)
    return "no_answer" if answer is None else check_expression(answer, numbers, target, num_used)


def check_expression(text: str, numbers: Sequence[int], target: int, num_used: int | None = None) -> str:
    """Why an answer is right or wrong: "correct", or the first thing wrong with it. Never raises on any text.

    The text is an expression, optionally followed by `= target`. It must use every given number exactly as often as
    given, or, with num_used, exactly that many of them, each at most as often as given.

    The wrongs, in the order of checking: an `ExpressionError.reason`; "wrong_claim", the part after `=` is not the
    target; "wrong_numbers"; "wrong_value".
    """
    left, equals, claim = text.partition("=")
    try:
        expression = parse_expression(left)
    except ExpressionError as error:
        return error.reason
    # Compared as text: converting the claim's digits would cost what a hostile length asks.
    if equals and claim.strip().translate(SIGNS) != str(target):
        return "wrong_claim"
    if not _uses(expression.numbers, numbers, num_used):
        return "wrong_numbers"
    return "correct" if expression.value == target else "wrong_value"


def _integer(value: Any) -> int | None:
    """A dataset's integer, which may come as numpy's, a whole float or digits; None for anything else."""
    try:
        return int(value) if int(value) == float(value) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _uses(used: Sequence[int], given: Sequence[int], num_used: int | None) -> bool:
    if num_used is None:
        return Counter(used) == Counter(given)
    return len(used) == num_used and Counter(used) <= Counter(given)


def evaluate(text: str) -> Fraction:
    """The exact value of an expression; raises ExpressionError (a ValueError). See `parse_expression`."""
    return parse_expression(text).value


def parse_expression(text: str) -> Expression:
    """Integers, + - * / (also × · ÷ −) and parentheses, with the usual precedence, left to right, as exact fractions.

    No signs before a number, no powers, no decimals, ASCII digits only. Raises ExpressionError.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError("too_long", f"{len(text)} characters; an expression has at most {MAX_LENGTH}")
    parser = _Parser(_tokens(text.translate(SIGNS)))
    if not parser.tokens:
        raise ExpressionError("empty", "there is no expression")
    value = parser.sum(depth=0)
    if parser.position < len(parser.tokens):
        raise ExpressionError("syntax", f"unexpected {parser.peek()!r}")
    return Expression(value, tuple(parser.numbers))


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    inside_number = False
    for char in text:
        if char in DIGITS:
            if inside_number:
                tokens[-1] += char
            else:
                tokens.append(char)
        elif char in "+-*/()":
            tokens.append(char)
        elif char not in " \t\r\n":
            raise ExpressionError("syntax", f"unexpected {char!r}")
        inside_number = char in DIGITS
    return tokens


class _Parser:
    """Recursive descent, one method per level of precedence; recursion only at parentheses, bounded by MAX_DEPTH."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens
        self.position = 0
        self.numbers: list[int] = []

    def peek(self) -> str:
        """The next token, "" at the end."""
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.position += 1
        return token

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.peek() in ("+", "-"):
            value = value + self.product(depth) if self.take() == "+" else value - self.product(depth)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.atom(depth)
        while self.peek() in ("*", "/"):
            if self.take() == "*":
                value *= self.atom(depth)
                continue
            divisor = self.atom(depth)
            if divisor == 0:
                raise ExpressionError("division_by_zero", "division by zero")
            value /= divisor
        return value

    def atom(self, depth: int) -> Fraction:
        token = self.take()
        if token[:1] in DIGITS:
            self.numbers.append(int(token))
            return Fraction(self.numbers[-1])
        if token != "(":
            raise ExpressionError("syntax", f"expected a number or '(', found {token or 'the end'!r}")
        if depth >= MAX_DEPTH:
            raise ExpressionError("too_deep", f"more than {MAX_DEPTH} nested parentheses")
        value = self.sum(depth + 1)
        if self.take() != ")":
            raise ExpressionError("syntax", "a parenthesis is not closed")
        return value
