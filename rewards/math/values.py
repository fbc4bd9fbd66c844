"""Are two expressions the same value? Exactly where they are rational, by many digits at random points elsewhere.

Schwartz (1980) and Zippel (1979): two different polynomials disagree at almost every point, so that one disagreement
proves them different and a few agreements at random points make them equal.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction

from rewards.math.exact import Deadline, TooLarge, Undefined, exact_value
from rewards.math.nodes import IMAGINARY, INFINITY, Node, free_atoms, number, walk
from rewards.math.numeric import NumericValue

_RANGES = ((1, 9), (1, 9), (-9, 9), (-9, 9), (0, 1), (0, 1))
"""Of the random points; six, so that functions defined on one side of zero still meet two."""
_FAR_RANGES = tuple(
    pair for low, high in ((10, 10**3), (10**3, 10**9), (10**9, 10**30)) for pair in ((-high, -low), (low, high))
)
"""Points for functions in pieces: |x+100|-100 is x on one side of -100 only."""
_IN_PIECES = frozenset({"abs", "floor", "ceil", "sgn", "max", "min"})


def same_value(gold: Node, answer: Node, deadline: Deadline, *, decimal_digits: int) -> bool | None:
    """Whether two expressions are equal wherever both are defined and real; None when that cannot be evaluated.

    A decimal with at least `decimal_digits` significant digits also equals an irrational or repeating value that it
    agrees with in every digit it shows. Raises OutOfTime.
    """
    atoms = free_atoms(gold) | free_atoms(answer)
    try:
        if atoms:
            return _same_function(gold, answer, deadline)
        exact_gold, exact_answer = exact_value(gold, deadline), exact_value(answer, deadline)
        if exact_gold is not None and exact_gold == exact_answer:
            return True
        for rounded, other in ((answer, gold), (gold, answer)):
            if (decimal := _decimal(rounded)) is not None:
                return _agrees(decimal, other, deadline, decimal_digits)
        if exact_gold is not None and exact_answer is not None:
            return False
        return NumericValue(gold, deadline).equals(NumericValue(answer, deadline))
    except Undefined:
        return False
    except (TooLarge, TypeError):
        return None


def is_undefined(node: Node, deadline: Deadline) -> bool:
    """Whether evaluating a constant expression divides by zero or the like."""
    if free_atoms(node) or INFINITY in walk(node):
        return False
    try:
        if exact_value(node, deadline) is None:
            NumericValue(node, deadline)
    except Undefined:
        return True
    except (TooLarge, TypeError):
        pass
    return False


# ---- decimals


def _decimal(node: Node) -> tuple[Fraction, int, Fraction] | None:
    """(value, significant digits, unit of the last place) of 1.41, -1.41 or 1.41\\times10^5."""
    if node.op == "dec":
        return node.args
    if node.op == "neg" and (inner := _decimal(node.args[0])):
        value, digits, unit = inner
        return -value, digits, unit
    if node.op == "mul" and len(node.args) == 2 and node.args[0].op == "dec" and node.args[1].op == "pow":
        base, exponent = node.args[1].args
        if base == number(10) and exponent.op == "num" and exponent.args[0] in range(-1000, 1000):
            value, digits, unit = node.args[0].args
            scale = Fraction(10) ** int(exponent.args[0])
            return value * scale, digits, unit * scale
    return None


def _agrees(decimal: tuple[Fraction, int, Fraction], other: Node, deadline: Deadline, decimal_digits: int) -> bool:
    """Whether the decimal is the other value cut or rounded; a value with a finite decimal form must be met exactly."""
    value, digits, unit = decimal
    exact = exact_value(other, deadline)
    if exact is not None and (digits < decimal_digits or is_finite_decimal(exact)):
        return exact == value
    if exact is None:
        numeric = NumericValue(other, deadline)
        if numeric.equals(NumericValue(number(value), deadline)):
            return True  # \\cos\\frac{\\pi}{3} is rational, but no rational operations lead there
        if digits < decimal_digits or not numeric.is_real:
            return False
        exact = numeric.as_fraction()
    rounded = abs(exact - value) * 2 <= unit
    return rounded or 0 <= abs(exact) - abs(value) < unit


def is_finite_decimal(value: Fraction) -> bool:
    """Whether a fraction is a decimal that ends."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


# ---- functions


def random_points(
    gold: Node, answer: Node, ranges: Iterable[tuple[int, int]] = _RANGES
) -> Iterator[dict[Node, Fraction]]:
    """One point from each range for the unknowns of a pair: the same points for the same pair, so that a verdict can be
    repeated, and others for another, so that no answer can be written to agree at them."""
    ordered = sorted(free_atoms(gold) | free_atoms(answer), key=repr)
    generator = random.Random(_fingerprint(gold) + _fingerprint(answer))
    for low, high in ranges:
        steps = generator.randrange(500, 5000)
        yield {atom: low + Fraction(generator.randrange(1, steps * (high - low)), steps) for atom in ordered}


def _fingerprint(node: Node) -> str:
    """The same in every process, unlike the hash of a string; short, where a number has thousands of digits."""
    parts = (part for inner in walk(node) for part in inner if not isinstance(part, Node))
    values = (value for part in parts for value in (part if isinstance(part, tuple) else (part,)))
    return " ".join(
        str(hash(value)) if isinstance(value, Fraction) else str(value)
        for value in values
        if not isinstance(value, Node)
    )


def _has_pieces(node: Node) -> bool:
    def is_root(inner: Node) -> bool:
        exponent = inner.args[1]
        is_whole = exponent.op == "num" and exponent.args[0].denominator == 1
        return inner.op == "pow" and not is_whole and not free_atoms(exponent)

    return any(
        inner.op == "root" or is_root(inner) or (inner.op == "call" and inner.args[0] in _IN_PIECES)
        for inner in walk(node)
        if inner.op in ("root", "pow", "call")
    )


def _same_function(gold: Node, answer: Node, deadline: Deadline) -> bool | None:
    """Agreement at every point where both are real; at complex values only when there are no real ones."""
    is_complex = IMAGINARY in walk(gold) or IMAGINARY in walk(answer)
    real = {True: 0, False: 0}
    complex_ = {True: 0, False: 0}
    for point in random_points(gold, answer):
        deadline.check()
        try:
            agree, both_real = _compare_at(gold, answer, point, deadline)
        except Undefined:
            continue
        if (both_real or is_complex) and not agree:
            return False
        (real if both_real else complex_)[agree] += 1
    if (_has_pieces(gold) or _has_pieces(answer)) and _differ_far_away(gold, answer, deadline):
        return False
    if real[True] >= 2:
        return True
    if complex_[True] + complex_[False] == 0:
        return None
    return complex_[False] == 0


def _differ_far_away(gold: Node, answer: Node, deadline: Deadline) -> bool:
    for point in random_points(gold, answer, _FAR_RANGES):
        deadline.check()
        try:
            agree, both_real = _compare_at(gold, answer, point, deadline)
        except (Undefined, TooLarge):
            continue
        if both_real and not agree:
            return True
    return False


def _compare_at(gold: Node, answer: Node, point: Mapping[Node, Fraction], deadline: Deadline) -> tuple[bool, bool]:
    exact_gold, exact_answer = exact_value(gold, deadline, point), exact_value(answer, deadline, point)
    if exact_gold is not None and exact_answer is not None:
        return exact_gold == exact_answer, True
    one, other = NumericValue(gold, deadline, point), NumericValue(answer, deadline, point)
    return one.equals(other), one.is_real and other.is_real


def real_fraction(node: Node, deadline: Deadline, values: Mapping[Node, Fraction] | None = None) -> Fraction | None:
    """The real value of an expression, exact or `Rounded` to some fifty digits; None when it has none."""
    try:
        exact = exact_value(node, deadline, values)
        if exact is not None:
            return like(exact, *(values or {}).values())
        numeric = NumericValue(node, deadline, values)
        return Rounded(numeric.as_fraction()) if numeric.is_real else None
    except (Undefined, TooLarge, TypeError):
        return None


class Rounded(Fraction):
    """A value known to some fifty digits; arithmetic gives plain fractions, see `like`."""

    __slots__ = ()


def like(value: Fraction, *sources: Fraction) -> Fraction:
    """A value computed from others: rounded when one of them is."""
    return Rounded(value) if any(isinstance(source, Rounded) for source in sources) else value


def nearly_equal(one: Fraction, other: Fraction) -> bool:
    """Equal, up to rounding where one of them is rounded."""
    if one == other or not (isinstance(one, Rounded) or isinstance(other, Rounded)):
        return one == other
    return abs(one - other) * 2**100 < max(abs(one), abs(other))
