"""Values to many digits with mpmath, for what is not rational: roots, pi, logarithms, trigonometry, complex numbers.

Never a float: at 192 bits or more, two written expressions that agree are equal, and two that do not are not.
"""

import threading
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from rewards.math.exact import Deadline, TooLarge, Undefined
from rewards.math.nodes import Node

START_PRECISION = 192
MAX_PRECISION = 50_000
GUARD_BITS = 128
SPREAD_FACTOR = 4
"""Kept for each bit of the range of magnitudes inside an expression: 10^{100}+\\sqrt2 is not 10^{100}+\\sqrt3, and
\\sqrt{N^2+1} is not N, though they differ by 1/N where N^2 is the largest number in sight."""
MAX_MAGNITUDE = 1 << 20
"""Bits before or after the point."""

_local = threading.local()


def _context() -> Any:
    """An mpmath context of this thread: the global one's precision is shared."""
    if not hasattr(_local, "context"):
        import mpmath

        _local.context = mpmath.MPContext()
    return _local.context


class NumericValue:
    """The value of a tree, real or complex, and the precision it was computed with."""

    def __init__(self, node: Node, deadline: Deadline, values: Mapping[Node, Fraction] | None = None):
        """Raises Undefined, TooLarge, OutOfTime, and TypeError for a tree that is no number."""
        self.node, self.deadline, self.values = node, deadline, values or {}
        self.precision = 0
        self.compute(START_PRECISION)
        if self.needed_precision() > self.precision:
            self.compute(self.needed_precision())

    def compute(self, precision: int) -> None:
        if precision > MAX_PRECISION:
            raise TooLarge
        self.largest = self.smallest = 0
        self.precision = precision
        self.context = _context()
        self.context.prec = precision
        self.value = self._evaluate(self.node)

    def needed_precision(self) -> int:
        return GUARD_BITS + SPREAD_FACTOR * (self.largest - self.smallest)

    @property
    def is_real(self) -> bool:
        imaginary = getattr(self.value, "imag", 0)
        return imaginary == 0 or self._magnitude(imaginary) < self.largest - self.precision + 40

    def as_fraction(self) -> Fraction:
        """The real part, exactly as computed."""
        sign, mantissa, exponent, _ = self.context.mpf(self.value.real)._mpf_
        return (-1 if sign else 1) * Fraction(int(mantissa)) * Fraction(2) ** exponent

    def equals(self, other: "NumericValue") -> bool:
        """Whether both are one number, at a precision fit for both."""
        precision = max(self.needed_precision(), other.needed_precision(), START_PRECISION)
        for side in (self, other):
            if side.precision < precision:
                side.compute(precision)
        self.context.prec = precision
        difference = abs(self.value - other.value)
        scale = max(self.largest, other.largest)
        return difference == 0 or self._magnitude(difference) < scale - precision + 40

    def _magnitude(self, value: Any) -> int:
        return int(self.context.mag(value)) if value else -MAX_MAGNITUDE

    def _evaluate(self, node: Node) -> Any:
        op, args = node
        if node in self.values:
            value = self._fraction(self.values[node])
        elif op in ("num", "dec"):
            value = self._fraction(args[0])
        elif op == "const":
            value = self._constant(args[0])
        else:
            name, arguments = (args[0], args[1:]) if op == "call" else (op, args)
            function = _FUNCTIONS.get(name)
            if function is None:
                raise TypeError(f"{op} is no number")
            operands = [self._evaluate(argument) for argument in arguments]
            self.deadline.check()
            value = function(self.context, *operands)
        return self._checked(value)

    def _checked(self, value: Any) -> Any:
        if not self.context.isfinite(value):
            raise Undefined
        if value:
            magnitude = int(self.context.mag(value))
            self.largest, self.smallest = max(self.largest, magnitude), min(self.smallest, magnitude)
            if abs(magnitude) > MAX_MAGNITUDE:
                raise TooLarge
        return value

    def _fraction(self, value: Fraction) -> Any:
        return self.context.mpf(value.numerator) / value.denominator

    def _constant(self, name: str) -> Any:
        if name == "infinity":
            raise Undefined
        return {"pi": +self.context.pi, "e": +self.context.e, "i": self.context.mpc(0, 1)}[name]


# ---- functions of (context, operands...)


def _is_real(value: Any) -> bool:
    return not getattr(value, "imag", 0)


def _add(context, *terms):
    total = context.zero
    for term in terms:
        total = total + term
    return total


def _mul(context, *factors):
    product = context.one
    for factor in factors:
        product = product * factor
    return product


def _divide(context, top, bottom):
    if not bottom:
        raise Undefined
    return top / bottom


def _power(context, base, exponent):
    if not base:
        if _is_real(exponent) and exponent.real > 0:
            return context.zero
        raise Undefined
    if abs(exponent) * (abs(int(context.mag(base))) + 1) > MAX_MAGNITUDE:
        raise TooLarge
    return context.power(base, exponent)


def _root(context, radicand, index):
    if not index:
        raise Undefined
    if _is_real(radicand) and _is_real(index) and radicand.real < 0 and index.real % 2 == 1:
        return -_power(context, -radicand, 1 / index)
    return context.sqrt(radicand) if index == 2 else _power(context, radicand, 1 / index)


def _logarithm(context, value, base=10):
    if not value or not base or base == 1:
        raise Undefined
    return context.ln(value) / context.ln(base)


def _bounded(name: str, limit: int):
    """A function of mpmath whose cost grows with its argument; beyond 2^limit it is not evaluated."""

    def evaluate(context, value):
        if value and int(context.mag(value)) > limit:
            raise TooLarge
        try:
            return getattr(context, name)(value)
        except ValueError as error:  # a pole
            raise Undefined from error

    return evaluate


def _binomial(context, n, k):
    """Between whole numbers as well, so that \\binom{n}{2} is n(n-1)/2."""
    if any(value and int(context.mag(value)) > 10 for value in (n, k)):
        raise TooLarge
    return context.binomial(n, k)


def _real_only(function):
    def evaluate(context, *values):
        if not all(map(_is_real, values)):
            raise Undefined
        return context.mpf(function(context, *(value.real for value in values)))

    return evaluate


_TRIGONOMETRY = {
    **{name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "exp")},
    **{f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan", "cot")},
}

_FUNCTIONS = {
    "neg": lambda context, value: -value,
    "add": _add,
    "mul": _mul,
    "div": _divide,
    "pow": _power,
    "root": _root,
    "percent": lambda context, value: value / 100,
    "degree": lambda context, value: value * context.pi / 180,
    "abs": lambda context, value: abs(value),
    "ln": lambda context, value: _logarithm(context, value, +context.e),
    "log": _logarithm,
    "lg": _logarithm,
    "floor": _real_only(lambda context, value: context.floor(value)),
    "ceil": _real_only(lambda context, value: context.ceil(value)),
    "sgn": _real_only(lambda context, value: context.sign(value)),
    "max": _real_only(lambda context, *values: max(values)),
    "min": _real_only(lambda context, *values: min(values)),
    "factorial": _bounded("factorial", 10),
    "Gamma": _bounded("gamma", 10),
    "binomial": _binomial,
    **{name: _bounded(function, 19) for name, function in _TRIGONOMETRY.items()},
    "tanh": _bounded("tanh", 5),  # beyond e^{32} the digits no longer tell it from 1
}
