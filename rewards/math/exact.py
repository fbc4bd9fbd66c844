"""Exact values: a tree of rational operations -> Fraction, within limits checked before each step."""

import math
import operator
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import reduce

from rewards.math.nodes import Node

MAX_BITS = 100_000
"""Of a numerator or denominator. A larger number is never computed: 10^{10^{10}} costs nothing here."""


class Undefined(ArithmeticError):
    """Division by zero, 0^0, the logarithm of 0: equal to nothing, itself included."""


class TooLarge(ArithmeticError):
    """The value would exceed the limits."""


class OutOfTime(Exception):
    """The deadline of the check has passed."""


class Deadline:
    """A point in time, looked at between steps: no signal, no thread."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()

    def check(self) -> None:
        """Raises OutOfTime once it has passed."""
        if time.monotonic() > self.end:
            raise OutOfTime


def exact_value(node: Node, deadline: Deadline, values: Mapping[Node, Fraction] | None = None) -> Fraction | None:
    """The value of a tree as a fraction, or None when it is irrational, complex or unknown.

    `values` gives those of symbols. Raises Undefined, TooLarge and OutOfTime.
    """
    op, args = node
    if op in ("num", "dec"):
        return args[0]
    if values and node in values:
        return values[node]
    name = args[0] if op == "call" else op
    function = _FUNCTIONS.get(name)
    if function is None:
        return None
    operands = []
    for argument in args[1:] if op == "call" else args:
        operand = exact_value(argument, deadline, values)
        if operand is None:
            return None
        operands.append(operand)
    deadline.check()
    value = function(*operands)
    if value is not None and _bits(value) > MAX_BITS:
        raise TooLarge
    return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _divide(top: Fraction, bottom: Fraction) -> Fraction:
    if not bottom:
        raise Undefined("division by zero")
    return top / bottom


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        root = _root(base, Fraction(exponent.denominator))
        return None if root is None else _power(root, Fraction(exponent.numerator))
    if not base and exponent <= 0:
        raise Undefined("0 to a power that is not positive")
    if abs(base) == 1:
        return Fraction(1) if exponent % 2 == 0 else base
    if base and _bits(base) * abs(exponent) > 2 * MAX_BITS:
        raise TooLarge
    return base ** int(exponent)


def _root(radicand: Fraction, index: Fraction) -> Fraction | None:
    """The real root where it is rational; of a negative number only with an odd index."""
    if index.denominator != 1 or not 0 < index < 1000:
        return None
    degree = int(index)
    if radicand < 0:
        root = _root(-radicand, index) if degree % 2 else None
        return None if root is None else -root
    top, bottom = _integer_root(radicand.numerator, degree), _integer_root(radicand.denominator, degree)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _integer_root(number: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(number)
    else:
        root = 1 << -(-number.bit_length() // degree)
        while root and (step := ((degree - 1) * root + number // root ** (degree - 1)) // degree) < root:
            root = step
    return root if root**degree == number else None


def _factorial(number: Fraction) -> Fraction | None:
    if number.denominator != 1 or number < 0:
        return None
    if number.numerator * number.numerator.bit_length() > 2 * MAX_BITS:
        raise TooLarge
    return Fraction(math.factorial(int(number)))


def _binomial(n: Fraction, k: Fraction) -> Fraction | None:
    if n.denominator != 1 or k.denominator != 1 or n < 0 or k < 0:
        return None
    if min(k, max(n - k, 0)) * max(n.numerator.bit_length(), 1) > MAX_BITS:
        raise TooLarge
    return Fraction(math.comb(int(n), int(k)))


def _integers(function: Callable[..., int]) -> Callable[..., Fraction | None]:
    def of_integers(*numbers: Fraction) -> Fraction | None:
        if any(number.denominator != 1 for number in numbers):
            return None
        return Fraction(function(*(number.numerator for number in numbers)))

    return of_integers


def _product(*factors: Fraction) -> Fraction:
    result = Fraction(1)
    for factor in factors:
        result *= factor
        if _bits(result) > MAX_BITS:
            raise TooLarge
    return result


def _sum(*terms: Fraction) -> Fraction:
    return reduce(operator.add, terms)


_FUNCTIONS: dict[str, Callable[..., Fraction | None]] = {
    "neg": operator.neg,
    "add": _sum,
    "mul": _product,
    "div": _divide,
    "pow": _power,
    "root": _root,
    "percent": lambda value: value / 100,
    "factorial": _factorial,
    "binomial": _binomial,
    "abs": abs,
    "floor": lambda value: Fraction(math.floor(value)),
    "ceil": lambda value: Fraction(math.ceil(value)),
    "sgn": lambda value: Fraction((value > 0) - (value < 0)),
    "max": max,
    "min": min,
    "gcd": _integers(math.gcd),
    "lcm": _integers(math.lcm),
}
