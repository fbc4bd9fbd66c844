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


def evaluate(expression: Expression) -> int:
    """The expression's value. Raises ValueError when a step leaves 1..MAX_VALUE."""
    if isinstance(expression, int):
        return expression
    op, left, right = expression
    value = combine(op, evaluate(left), evaluate(right))
    if value is None:
        raise ValueError(f"{render(expression)} has a step outside 1..{MAX_VALUE}; use random_expression to draw one")
    return value


def render(expression: Expression, *, nested: bool = False) -> str:
    """Text with spaces between tokens; every nested operation stands in parentheses."""
    if isinstance(expression, int):
        return str(expression)
    op, left, right = expression
    text = f"{render(left, nested=True)} {op} {render(right, nested=True)}"
    return f"( {text} )" if nested else text


def reductions(expression: Expression) -> Iterator[Expression]:
    """The expression, then itself with its leftmost innermost operation worked out, and so on down to a number."""
    yield expression
    while not isinstance(expression, int):
        expression = _reduce_once(expression)
        yield expression


def _reduce_once(expression: Expression) -> Expression:
    op, left, right = expression
    if not isinstance(left, int):
        return (op, _reduce_once(left), right)
    if not isinstance(right, int):
        return (op, left, _reduce_once(right))
    return evaluate(expression)


def work_out(expression: Expression) -> str:
    """The chain of equalities from the expression to its value: `( 3 + 5 ) * 7 = 8 * 7 = 56`."""
    return " = ".join(render(step) for step in reductions(expression))


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
