"""Plus-minus signs: one written answer, several values."""

from itertools import product

from rewards.math.nodes import Node, children, contains, replace_children

MAX_SIGNS = 3
"""Independent signs of which all combinations are listed; more are taken to go together."""


def expand_signs(node: Node) -> Node:
    """A list of both values of each \\pm; \\mp goes against the others."""
    if not contains(node, "pm"):
        return node
    if node.op in ("list", "or", "set"):
        items = [expand_signs(item) for item in node.args]
        return Node(node.op, tuple(part for item in items for part in (item.args if item.op == "list" else (item,))))
    signs = _signs(node)
    tied = any(inner.args[2] == r"\mp" for inner in signs) or len(set(signs)) > MAX_SIGNS
    choices = [dict.fromkeys(signs, plus) for plus in (True, False)]
    if not tied:
        choices = [dict(zip(signs, picks)) for picks in product((True, False), repeat=len(signs))]
    variants = tuple(dict.fromkeys(_choose_signs(node, choice) for choice in choices))
    return variants[0] if len(variants) == 1 else Node("list", variants)


def _signs(node: Node) -> list[Node]:
    inner = [sign for child in children(node) for sign in _signs(child)]
    return list(dict.fromkeys([*inner, node] if node.op == "pm" else inner))


def _choose_signs(node: Node, is_plus: dict[Node, bool]) -> Node:
    if node.op != "pm":
        return replace_children(node, lambda child: _choose_signs(child, is_plus))
    left, right, sign = node.args
    plus = is_plus[node] == (sign == r"\pm")
    right = _choose_signs(right, is_plus)
    right = right if plus else Node("neg", (right,))
    return right if left is None else Node("add", (_choose_signs(left, is_plus), right))
