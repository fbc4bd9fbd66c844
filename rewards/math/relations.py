"""Equations and inequalities: what an assignment says, which numbers an inequality allows, when two are the same."""

import math
from collections.abc import Callable
from fractions import Fraction

from rewards.math.exact import Deadline
from rewards.math.intervals import LINE, Piece, RealSet, same_bound
from rewards.math.nodes import EULER, IMAGINARY, INFINITY, MINUS_INFINITY, Node, children, free_atoms
from rewards.math.units import NEGATIONS
from rewards.math.values import like, nearly_equal, random_points, real_fraction

INEQUALITIES = frozenset({"<", "<=", ">", ">=", "!="})
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_STRICT = {"<": False, ">": False, "<=": True, ">=": True, "=": True}

_LINEAR_POINTS = (0, 1, -3, 7, Fraction(-1, 3), 2)

SameValue = Callable[[Node, Node], bool]


class Contradiction(ValueError):
    """An equation between different numbers: 4 = 5, x = 4 = 5."""


# ---- assignments


def is_name(node: Node) -> bool:
    """What may stand before `=` to name the answer: x, f(x), x_1, (x, y), AB, |AB|, AB/CD, AB:CD."""
    if node.op == "text":
        return NEGATIONS.isdisjoint(node.args[0].split())
    if node.op in ("sym", "apply") or node in (EULER, IMAGINARY):
        return True
    if node.op == "seq":
        return all(item.op == "sym" for item in children(node))
    if node.op == "mul":
        return all(factor.op == "sym" and factor.args[0][0].isupper() for factor in node.args)
    if node.op == "call":
        return node.args[0] in ("abs", "norm") and is_name(node.args[1])
    return node.op in ("ratio", "div") and all(is_name(part) and part.op in ("mul", "sym") for part in node.args)


def split_assignment(node: Node, same_value: SameValue) -> tuple[Node | None, Node]:
    """(name, value) of x = 3, 5 = x, x = 2+3 = 5 and x \\in S; (None, node) of anything that assigns nothing.

    A chain of numbers without a name (2+3 = 5) is its value. Raises Contradiction when its sides differ.
    """
    if node.op != "rel":
        return None, node
    operators, *sides = node.args
    if operators == ("in",) and is_name(sides[0]):
        return sides[0], sides[1]
    if "approx" in operators:
        # An approximation after the value adds nothing; only where a name stands before it, it is the value.
        cut = operators.index("approx") + 1
        if cut == 1 and is_name(sides[0]) and len(sides) == 2:
            return sides[0], sides[1]
        return split_assignment(_relation(operators[: cut - 1], sides[:cut]), same_value)
    if any(operator != "=" for operator in operators):
        return None, node
    values = [side for side in sides if not is_name(side)]
    if not values:
        return sides[0], sides[-1]
    if len(values) == len(sides) and any(map(free_atoms, sides)):
        return None, node
    if not all(same_value(values[0], value) for value in values[1:]):
        raise Contradiction(str(node))
    names = [side for side in sides if is_name(side)]
    return (names[0] if names else None), values[-1]


def _relation(operators: tuple[str, ...], sides: list[Node]) -> Node:
    return Node("rel", (operators, *sides)) if operators else sides[0]


def same_name(one: Node, other: Node) -> bool:
    """f(x) and f(t) name one function, of which y is the value; f(1) and f(2) are two numbers."""
    if "apply" in (one.op, other.op) and Node("sym", ("y",)) in (one, other):
        return all(argument.op == "sym" for node in (one, other) for argument in children(node))
    if one.op == other.op == "apply":
        symbols = all(argument.op == "sym" for argument in (*one.args[1:], *other.args[1:]))
        return one == other or (symbols and one.args[0] == other.args[0] and len(one.args) == len(other.args))
    return one == other


# ---- sets of numbers


def real_set(node: Node, deadline: Deadline) -> tuple[Node | None, RealSet] | None:
    """(variable, set) that an interval, a set, an inequality or a combination stands for; None when it is none.

    The variable is None where none is named.
    """
    if node.op == "seq":
        return _interval(node, deadline)
    if node.op == "set":
        return _points(node, deadline)
    if node == Node("named_set", ("R",)):
        return None, RealSet([LINE])
    if node.op == "rel":
        return _solution(node, deadline)
    if node.op in ("union", "intersection", "minus", "or", "list"):
        return _combination(node, deadline)
    return None


def _bound(node: Node, deadline: Deadline) -> Fraction | float | None:
    if node == INFINITY:
        return math.inf
    if node == MINUS_INFINITY:
        return -math.inf
    return None if free_atoms(node) else real_fraction(node, deadline)


def _interval(node: Node, deadline: Deadline) -> tuple[None, RealSet] | None:
    opening, closing, *ends = node.args
    if len(ends) != 2 or opening not in ("(", "["):
        return None
    low, high = (_bound(end, deadline) for end in ends)
    if low is None or high is None or low > high or (same_bound(low, high) and (opening, closing) != ("[", "]")):
        return None  # (2, 2) is a point of the plane, not the numbers between 2 and 2
    return None, RealSet([Piece(low, opening == "[" and low != -math.inf, high, closing == "]" and high != math.inf)])


def _points(node: Node, deadline: Deadline) -> tuple[None, RealSet] | None:
    bounds = [_bound(item, deadline) for item in node.args]
    if None in bounds:
        return None
    return None, RealSet([Piece(bound, True, bound, True) for bound in bounds])


def _combination(node: Node, deadline: Deadline) -> tuple[Node | None, RealSet] | None:
    if node.op in ("or", "list") and not all(is_inequality(item) for item in node.args):
        return None
    parts = [real_set(part, deadline) for part in node.args]
    if None in parts:
        return None
    variables = {variable for variable, _ in parts if variable is not None}
    if len(variables) > 1:
        return None
    sets = [numbers for _, numbers in parts]
    result = sets[0]
    for numbers in sets[1:]:
        if node.op in ("union", "or"):
            result = result | numbers
        else:
            result = result - numbers if node.op == "minus" else result & numbers
    if node.op == "list" and not result.pieces:
        # "x < 1, x > 2" lists the two halves of a union.
        return real_set(Node("or", node.args), deadline)
    return variables.pop() if variables else None, result


def is_inequality(node: Node) -> bool:
    return node.op == "rel" and all(operator in INEQUALITIES for operator in node.args[0])


def _solution(node: Node, deadline: Deadline) -> tuple[Node | None, RealSet] | None:
    """Of linear relations in one unknown: each neighbouring pair of a chain gives a half-line."""
    operators, *sides = node.args
    if operators == ("in",):
        inner = real_set(sides[1], deadline)
        return inner and (sides[0], inner[1])
    atoms = free_atoms(node)
    if len(atoms) != 1 or any(operator not in INEQUALITIES | {"="} for operator in operators):
        return None
    (atom,) = atoms
    result = RealSet([LINE])
    for operator, left, right in zip(operators, sides, sides[1:]):
        solution = _half_line(operator, left, right, atom, deadline)
        if solution is None:
            return None
        result = result & solution
    return atom, result


def _half_line(operator: str, left: Node, right: Node, atom: Node, deadline: Deadline) -> RealSet | None:
    for side, other, name in ((left, right, operator), (right, left, _FLIPPED[operator])):
        if side == atom and (bound := _bound(other, deadline)) is not None:
            return _half(name, bound)
        if side.op == "call" and side.args[0] == "abs" and name in _STRICT and name != "=":
            return _around_zero(name, side.args[1], other, atom, deadline)
    difference = Node("add", (left, Node("neg", (right,))))
    at = [real_fraction(difference, deadline, {atom: Fraction(point)}) for point in _LINEAR_POINTS]
    if None in at:
        return None
    slope = at[1] - at[0]
    line = [like(at[0] + slope * point, *at) for point in _LINEAR_POINTS]
    if not slope or not all(map(nearly_equal, line, at)):
        return None
    return _half(operator if slope > 0 else _FLIPPED[operator], like(-at[0] / slope, *at))


def _around_zero(operator: str, inner: Node, bound: Node, atom: Node, deadline: Deadline) -> RealSet | None:
    """|x - 1| < 3 is x - 1 < 3 and x - 1 > -3; |x - 1| > 3 is one or the other."""
    above = _half_line(operator, inner, bound, atom, deadline)
    below = _half_line(_FLIPPED[operator], inner, Node("neg", (bound,)), atom, deadline)
    if above is None or below is None or free_atoms(bound):
        return None
    return above & below if operator in ("<", "<=") else above | below


def _half(operator: str, bound: Fraction | float) -> RealSet:
    point = Piece(bound, True, bound, True)
    if operator == "!=":
        return RealSet([point]).complement()
    if operator == "=":
        return RealSet([point])
    closed = _STRICT[operator] and abs(bound) != math.inf
    if operator in ("<", "<="):
        return RealSet([Piece(-math.inf, False, bound, closed)])
    return RealSet([Piece(bound, closed, math.inf, False)])


# ---- relations between several unknowns


def proportional(gold: Node, answer: Node, deadline: Deadline) -> bool:
    """Whether two equations or inequalities are one up to a factor: x/2 + y/3 = 1 and 3x + 2y = 6."""
    if len(gold.args) != 3 or len(answer.args) != 3:
        return False  # a chain
    (gold_operator,), *gold_sides = gold.args
    (answer_operator,), *answer_sides = answer.args
    flipped = _FLIPPED.get(answer_operator, answer_operator)
    if gold_operator not in (answer_operator, flipped) or gold_operator not in _FLIPPED:
        return False
    one, other = (Node("add", (left, Node("neg", (right,)))) for left, right in (gold_sides, answer_sides))
    ratios = []
    for point in random_points(gold, answer):
        top, bottom = real_fraction(one, deadline, point), real_fraction(other, deadline, point)
        if top and bottom:
            ratios.append(like(top / bottom, top, bottom))
        elif top is not None and bottom is not None and bool(top) != bool(bottom):
            return False
    if len(ratios) < 2 or not all(nearly_equal(ratio, ratios[0]) for ratio in ratios):
        return False
    if gold_operator in ("=", "!="):
        return True
    return (ratios[0] > 0) == (gold_operator == answer_operator)
