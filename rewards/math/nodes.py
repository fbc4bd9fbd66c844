"""The parsed form of an answer: an immutable tree of plain tuples.

Node(op, args); args hold nodes, or plain values for the leaves. Of a value:

    num (Fraction)                     dec (Fraction, significant digits, unit of the last place)
    sym (name)                         const ("pi" | "e" | "i" | "infinity")
    neg add mul div pow (operands)     root (radicand, index)         pm (left or None, right, sign)
    call (function name, argument...)  apply (name, argument...): a function nobody defined, f(x)
    operator (name, part...): a sum, an integral, a limit, compared as written

Of a whole answer:

    text (normalised text)             unit (value, unit)             percent (value)      degree (value)
    base (digits, base)                ratio (part...)                matrix (kind, row...), row (entry...)
    seq (opening, closing, item...)    set (item...)                  list (item...)       or (item...)
    rel (operators, side...)           union, intersection, minus (set, set)               named_set (name)
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple


class Node(NamedTuple):
    """One node; `str()` shows the tree the way `explain` prints it."""

    op: str
    args: tuple

    def __str__(self) -> str:
        return render(self)


def number(value: int | Fraction) -> Node:
    return Node("num", (Fraction(value),))


def symbol(name: str) -> Node:
    return Node("sym", (name,))


def call(name: str, *arguments: Node) -> Node:
    return Node("call", (name, *arguments))


PI, EULER, IMAGINARY, INFINITY = (Node("const", (name,)) for name in ("pi", "e", "i", "infinity"))
MINUS_INFINITY = Node("neg", (INFINITY,))
ZERO = number(0)


def children(node: Node) -> Iterator[Node]:
    return (argument for argument in node.args if isinstance(argument, Node))


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below it."""
    stack = [node]
    while stack:
        top = stack.pop()
        yield top
        stack.extend(children(top))


def contains(node: Node, *ops: str) -> bool:
    return any(inner.op in ops for inner in walk(node))


def free_atoms(node: Node) -> frozenset[Node]:
    """What stands for an unknown value: symbols, f(x), unevaluated operators (whole, whatever is inside)."""
    if node.op in ("sym", "apply", "operator"):
        return frozenset([node])
    return frozenset().union(*map(free_atoms, children(node)))


def replace_children(node: Node, function) -> Node:
    return Node(node.op, tuple(function(arg) if isinstance(arg, Node) else arg for arg in node.args))


def canonical(node: Node) -> Node:
    """The same tree with sums and products flattened and sorted, so that order alone makes no difference."""
    node = replace_children(node, canonical)
    if node.op not in ("add", "mul"):
        return Node("num", node.args[:1]) if node.op == "dec" else node
    operands = []
    for operand in node.args:
        operands.extend(operand.args if operand.op == node.op else [operand])
    return Node(node.op, tuple(sorted(operands, key=repr)))


def render(node: Node) -> str:
    """Prefix notation: add(num(1), sym(x)) is shown as (add 1 x)."""
    if node.op in ("num", "dec", "sym", "const"):
        return str(node.args[0])
    if node.op == "text":
        return f'"{node.args[0]}"'
    parts = (str(part) if isinstance(part, Node) else _render_plain(part) for part in node.args)
    return f"({' '.join([node.op, *parts])})"


def _render_plain(part: object) -> str:
    return " ".join(map(str, part)) if isinstance(part, tuple) else str(part)
