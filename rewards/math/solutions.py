"""Which numbers satisfy a relation in one unknown?

One number that satisfies only one of two relations proves them different. Between the places where a rational function
is zero or has a pole nothing changes; so where all these places are known, one number from each gap proves them equal.
"""

import math
from collections.abc import Iterator
from fractions import Fraction

from rewards.math.exact import Deadline
from rewards.math.intervals import RealSet
from rewards.math.nodes import Node, walk
from rewards.math.polynomials import NotPolynomial, as_quotient, count_real_roots, vanishes
from rewards.math.relations import real_set
from rewards.math.values import nearly_equal, real_fraction

_PROBES = tuple(Fraction(seventh, 7) for seventh in (*range(40), 77, 700, 9999))


def same_solutions(gold: Node, answer: Node, unknown: Node, deadline: Deadline) -> bool | None:
    """Whether two relations or sets allow the same numbers for `unknown`; None when that is not proved here.

    Raises OutOfTime.
    """
    places = sorted({bound for node in (gold, answer) for bound in _bounds(node, deadline)})
    between = [(low + high) / 2 for low, high in zip(places, places[1:])]
    outside = [places[0] - 1, places[-1] + 1] if places else [Fraction(0)]
    for x in (*places, *between, *outside, *_PROBES, *(-probe for probe in _PROBES)):
        if holds(gold, unknown, x, deadline) != holds(answer, unknown, x, deadline):
            return False
    try:
        complete = all(_roots_are_known(relation, unknown, places) for relation in _unsolved(gold, answer, deadline))
    except NotPolynomial:
        return None
    return True if complete else None


def _bounds(node: Node, deadline: Deadline) -> Iterator[Fraction]:
    """Where the intervals and points that can be read off begin and end."""
    known = real_set(node, deadline) or (None, RealSet([]))
    for piece in known[1].pieces:
        yield from (bound for bound in (piece.low, piece.high) if abs(bound) != math.inf)
    for part in node.args if not known[1].pieces else ():
        if isinstance(part, Node) and part.op in ("rel", "seq", "set", "union", "or", "list"):
            yield from _bounds(part, deadline)


def _unsolved(gold: Node, answer: Node, deadline: Deadline) -> Iterator[tuple[Node, Node]]:
    """The neighbouring sides of the relations whose solutions could not be read off."""
    for root in (gold, answer):
        for node in walk(root):
            if node.op == "rel" and node.args[0] != ("in",) and real_set(node, deadline) is None:
                yield from zip(node.args[1:], node.args[2:])


def _roots_are_known(sides: tuple[Node, Node], unknown: Node, places: list[Fraction]) -> bool:
    left, right = sides
    for polynomial in as_quotient(Node("add", (left, Node("neg", (right,)))), unknown):
        if count_real_roots(polynomial) != sum(vanishes(polynomial, place) for place in places):
            return False
    return True


def holds(node: Node, unknown: Node, x: Fraction, deadline: Deadline) -> bool:
    """Whether the number `x`, put in for `unknown`, satisfies a relation or lies in a set."""
    deadline.check()
    if node.op == "rel":
        return _relation_holds(node, unknown, x, deadline)
    if node.op in ("union", "or", "intersection", "list", "minus"):
        results = [holds(part, unknown, x, deadline) for part in node.args]
        if node.op == "minus":
            return results[0] and not any(results[1:])
        equations = any(part.op == "rel" and part.args[0] == ("=",) for part in node.args)
        return any(results) if equations or node.op in ("union", "or") else all(results)
    known = real_set(node, deadline)
    return known is not None and x in known[1]


def _relation_holds(node: Node, unknown: Node, x: Fraction, deadline: Deadline) -> bool:
    operators, *sides = node.args
    if operators == ("in",):
        return holds(sides[1], unknown, x, deadline)
    values = [real_fraction(side, deadline, {unknown: x}) for side in sides]
    if None in values:
        return False
    return all(_compare(operator, *pair) for operator, pair in zip(operators, zip(values, values[1:])))


def _compare(operator: str, left: Fraction, right: Fraction) -> bool:
    same = nearly_equal(left, right)
    if operator in ("=", "<=", ">=") and same:
        return True
    if operator in ("<", "<="):
        return left < right and not same
    if operator in (">", ">="):
        return left > right and not same
    return operator == "!=" and not same
