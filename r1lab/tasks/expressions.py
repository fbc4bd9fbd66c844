"""Random arithmetic expressions, written and worked out the way a person would on paper.

An expression is a nested tuple `(op, left, right)` over integers. Values stay whole and positive and at most
`MAX_VALUE`, as in the Countdown numbers game, so that each is a single token of the embedded tokenizer.
"""

import random
from collections.abc import Iterator

MAX_VALUE = 100
OPS = "+-*/"

Expression = int | tuple[str, "Expression", "Expression"]


def combine(op: str, left: int, right: int) -> int | None:
    """`left op right` as a whole number in 1..MAX_VALUE, or None where the game forbids it."""
    if op == "+":
        value = left + right
    elif op == "-":
        value = left - right
    elif op == "*":
        value = left * right
    else:
        value = left // right if left % right == 0 else 0
    return value if 1 <= value <= MAX_VALUE else None


class ForbiddenStepError(ValueError):
    """A step of an expression that the game forbids."""


def evaluate(expression: Expression) -> int:
    """The expression's value. Raises ForbiddenStepError when a step is no whole number in 1..MAX_VALUE."""
    if isinstance(expression, int):
        return expression
    op, left, right = expression
    value = combine(op, evaluate(left), evaluate(right))
    if value is None:
        raise ForbiddenStepError(
            f"{render(expression)} has a step that is no whole number in 1..{MAX_VALUE}; random_expression draws none"
        )
    return value


def distance(expression: Expression, target: int) -> int:
    """How far the expression is off the target. Raises ForbiddenStepError as `evaluate` does."""
    return abs(evaluate(expression) - target)


def render(expression: Expression, *, nested: bool = False) -> str:
    """Text with spaces between tokens; every nested operation stands in parentheses."""
    if isinstance(expression, int):
        return str(expression)
    op, left, right = expression
    text = f"{render(left, nested=True)} {op} {render(right, nested=True)}"
    return f"( {text} )" if nested else text


def _steps(expression: Expression) -> Iterator[str]:
    if isinstance(expression, int):
        return
    op, left, right = expression
    yield from _steps(left)
    yield from _steps(right)
    yield f"{evaluate(left)} {op} {evaluate(right)} = {evaluate(expression)}"


def work_out(expression: Expression) -> str:
    """One operation after the other, innermost and leftmost first: `3 + 5 = 8 , 8 * 7 = 56`. A number is left as it is.

    Each step needs only the results in sight, so what to do next can be decided by looking at them; a chain that
    begins with the whole expression (`( 3 + 5 ) * 7 = 8 * 7 = 56`) has to be decided before anything is worked out.

    Raises ForbiddenStepError as `evaluate` does.
    """
    return " , ".join(_steps(expression)) or str(expression)


def work_out_and_check(expression: Expression, target: int) -> str:
    """The working, and how far it is off: `3 + 5 = 8 , 8 * 7 = 56 off 24 .` Raises ForbiddenStepError."""
    return f"{work_out(expression)} off {distance(expression, target)} ."


def random_expression(rng: random.Random, numbers: list[int], ops: str = OPS) -> Expression:
    """A random expression that uses each of `numbers` once: two parts are drawn and combined until one is left."""
    while True:
        parts: list[Expression] = list(numbers)
        values = list(numbers)
        while len(parts) > 1:
            i, j = rng.sample(range(len(parts)), 2)
            op = rng.choice(ops)
            if op in "-/" and values[i] < values[j]:
                i, j = j, i
            value = combine(op, values[i], values[j])
            if value is None:
                break
            part = (op, parts[i], parts[j])
            for index in sorted((i, j), reverse=True):
                del parts[index], values[index]
            parts.append(part)
            values.append(value)
        else:
            return parts[0]
