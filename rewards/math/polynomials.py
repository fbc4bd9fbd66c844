"""Polynomials in one unknown with rational coefficients, and how many real roots they have.

A polynomial is the tuple of its coefficients, constant first, without trailing zeros; () is zero.
"""

from fractions import Fraction

from rewards.math.nodes import Node

Polynomial = tuple[Fraction, ...]

MAX_DEGREE = 24
_ONE: Polynomial = (Fraction(1),)


class NotPolynomial(ValueError):
    """The expression is no quotient of two small polynomials."""


def as_quotient(node: Node, unknown: Node) -> tuple[Polynomial, Polynomial]:
    """(numerator, denominator) of a rational function. Raises NotPolynomial."""
    op, args = node
    if node == unknown:
        return (Fraction(0), Fraction(1)), _ONE
    if op in ("num", "dec"):
        return _trim([args[0]]), _ONE
    if op == "neg":
        top, bottom = as_quotient(args[0], unknown)
        return multiply(top, (Fraction(-1),)), bottom
    if op not in ("add", "mul", "div", "pow"):
        raise NotPolynomial(op)
    if op == "pow":
        return _power(args[0], args[1], unknown)
    result = as_quotient(args[0], unknown)
    for argument in args[1:]:
        (top, bottom), (other_top, other_bottom) = result, as_quotient(argument, unknown)
        if op == "div":
            other_top, other_bottom = other_bottom, other_top
        if op == "add":
            top = add(multiply(top, other_bottom), multiply(other_top, bottom))
        else:
            top = multiply(top, other_top)
        result = top, multiply(bottom, other_bottom)
    return result


def _power(base: Node, exponent: Node, unknown: Node) -> tuple[Polynomial, Polynomial]:
    if exponent.op != "num" or exponent.args[0] not in range(MAX_DEGREE + 1):
        raise NotPolynomial("power")
    top, bottom = as_quotient(base, unknown)
    result = _ONE, _ONE
    for _ in range(int(exponent.args[0])):
        result = multiply(result[0], top), multiply(result[1], bottom)
    return result


def _trim(coefficients: list[Fraction]) -> Polynomial:
    while coefficients and not coefficients[-1]:
        coefficients.pop()
    return tuple(coefficients)


def add(one: Polynomial, other: Polynomial) -> Polynomial:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    return _trim([a + b for a, b in zip(longer, shorter + (Fraction(0),) * (len(longer) - len(shorter)))])


def multiply(one: Polynomial, other: Polynomial) -> Polynomial:
    if len(one) + len(other) > MAX_DEGREE + 2:
        raise NotPolynomial("degree")
    product = [Fraction(0)] * max(len(one) + len(other) - 1, 0)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            product[i + j] += a * b
    return _trim(product)


def _remainder(one: Polynomial, other: Polynomial) -> Polynomial:
    rest = list(one)
    while len(rest) >= len(other):
        factor = rest[-1] / other[-1]
        for index, coefficient in enumerate(other):
            rest[len(rest) - len(other) + index] -= factor * coefficient
        rest = list(_trim(rest[:-1]))
    return tuple(rest)


def count_real_roots(polynomial: Polynomial) -> int:
    """Distinct real roots, by Sturm's theorem: the sign changes of his chain lost between the two infinities."""
    if len(polynomial) < 2:
        return 0
    chain = [polynomial, tuple(power * c for power, c in enumerate(polynomial))[1:]]
    while rest := _remainder(chain[-2], chain[-1]):
        chain.append(tuple(-coefficient for coefficient in rest))
    at_plus = [link[-1] > 0 for link in chain]
    at_minus = [(link[-1] > 0) == (len(link) % 2 == 1) for link in chain]
    return _changes(at_minus) - _changes(at_plus)


def _changes(signs: list[bool]) -> int:
    return sum(one != other for one, other in zip(signs, signs[1:]))


def vanishes(polynomial: Polynomial, x: Fraction) -> bool:
    """Whether the polynomial is zero at x, up to the rounding of an irrational x given to fifty digits."""
    value, scale = Fraction(0), Fraction(0)
    for coefficient in reversed(polynomial):
        value, scale = value * x + coefficient, scale * abs(x) + abs(coefficient)
    return abs(value) * 2**80 <= scale
