"""The numbers underneath: exact values, many digits, polynomials, sets of reals."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.math.exact import Deadline, OutOfTime, TooLarge, Undefined, exact_value
from rewards.math.intervals import LINE, Piece, RealSet
from rewards.math.nodes import symbol
from rewards.math.numeric import NumericValue
from rewards.math.parser import parse
from rewards.math.polynomials import as_quotient, count_real_roots, multiply
from rewards.math.values import real_fraction, same_value

AT_LEISURE = Deadline(3600)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3/4", Fraction(11, 4)),
        (r"\sqrt{\frac{4}{9}}", Fraction(2, 3)),
        ("27^{1/3}", 3),
        (r"\sqrt[3]{-27}", -3),
        ("10!/8!", 90),
        (r"\binom{5}{2}", 10),
        (r"\lfloor -2.5\rfloor", -3),
        (r"\gcd(12,18)", 6),
        ("(-1)^{10^{100}}", 1),
        (r"\sqrt2", None),
        (r"\pi", None),
        ("x", None),
    ],
)
def test_exact(text, value):
    assert exact_value(parse(text), AT_LEISURE) == value


@pytest.mark.parametrize("text", ["1/0", "0^0", "0^{-1}", r"\frac{1}{2-2}"])
def test_undefined(text):
    with pytest.raises(Undefined):
        exact_value(parse(text), AT_LEISURE)


@pytest.mark.parametrize(
    "text", ["9^{9^9}", "(10^7)!", "((9!)!)!", r"\binom{100000000}{50000000}", "2^{-9999999999}", "10^{10^{10}}"]
)
def test_large_values_are_not_computed(text):
    with pytest.raises(TooLarge):
        exact_value(parse(text), AT_LEISURE)


def test_late():
    with pytest.raises(OutOfTime):
        exact_value(parse("1+1"), Deadline(-1))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"\sqrt2+\sqrt3", r"\sqrt{5+2\sqrt6}", True),
        (r"\sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5}", "1", True),
        (r"\cos 36^\circ", r"\frac{1+\sqrt5}{4}", True),
        (r"4\arctan\frac15-\arctan\frac{1}{239}", r"\frac{\pi}{4}", True),
        (r"(1+\sqrt2)-\sqrt2-1", "0", True),
        (r"1+10^{-60}\sqrt2", r"1+10^{-60}\sqrt3", False),
        (r"e^{\pi\sqrt{163}}", "262537412640768744", False),
        (r"i^i", r"e^{-\frac{\pi}{2}}", True),
    ],
)
def test_many_digits(one, other, same):
    assert NumericValue(parse(one), AT_LEISURE).equals(NumericValue(parse(other), AT_LEISURE)) is same
    assert same_value(parse(one), parse(other), AT_LEISURE, decimal_digits=7) is same


@pytest.mark.parametrize("text", [r"e^{e^{e^{10}}}", r"\sin(10^{5000})", r"2^{\sqrt{10^{20}+1}}", r"\Gamma(10^9)"])
def test_numeric_values_have_limits(text):
    with pytest.raises(TooLarge):
        NumericValue(parse(text), AT_LEISURE)


# ---- polynomials


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=4), st.booleans())
def test_real_roots_are_counted_once_each(roots, has_complex_pair):
    polynomial = (Fraction(2),)
    for root in roots:
        polynomial = multiply(polynomial, (Fraction(-root), Fraction(1)))
    if has_complex_pair:
        polynomial = multiply(polynomial, (Fraction(1), Fraction(0), Fraction(1)))
    assert count_real_roots(polynomial) == len(set(roots))


def test_quotients():
    top, bottom = as_quotient(parse(r"\frac{x-1}{x+2}+1"), symbol("x"))
    assert (top, bottom) == ((1, 2), (2, 1))


# ---- sets of reals

BOUNDS = st.integers(0, 6).map(Fraction)
PIECES = st.builds(Piece, BOUNDS, st.booleans(), BOUNDS, st.booleans())
SETS = st.lists(PIECES, max_size=4)


def _holds(pieces, x):
    return any(
        (p.low < x or (p.low == x and p.has_low)) and (x < p.high or (x == p.high and p.has_high)) for p in pieces
    )


@given(SETS, SETS)
def test_sets_are_what_their_members_say(one, other):
    first, second = RealSet(one), RealSet(other)
    points = [Fraction(half, 2) for half in range(-1, 14)]
    assert [x in first for x in points] == [_holds(one, x) for x in points]
    assert [x in (first | second) for x in points] == [x in first or x in second for x in points]
    assert [x in (first & second) for x in points] == [x in first and x in second for x in points]
    assert [x in (first - second) for x in points] == [x in first and x not in second for x in points]
    assert (first == second) == all((x in first) == (x in second) for x in points)


def test_the_line_has_an_empty_complement():
    assert RealSet([LINE]).complement() == RealSet([])


def test_real_values():
    assert real_fraction(parse(r"\sqrt{-1}"), AT_LEISURE) is None
    assert abs(real_fraction(parse(r"\sqrt2"), AT_LEISURE) ** 2 - 2) < Fraction(1, 10**50)
