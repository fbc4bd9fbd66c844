"""Arithmetic of written matrices, entry by entry on trees."""

from rewards.math.nodes import Node, children, contains

MAX_ENTRIES = 100
Rows = tuple[tuple[Node, ...], ...]


def matrix_rows(node: Node) -> Rows | None:
    """The entries of a matrix, or of sums, products and multiples of matrices; None when it is not one."""
    if not contains(node, "matrix"):
        return None
    if node.op == "matrix":
        return tuple(tuple(children(row)) for row in children(node)) if node.args[0] == "matrix" else None
    parts = [matrix_rows(part) for part in node.args if isinstance(part, Node)]
    if node.op == "neg":
        return parts[0] and _map(parts[0], lambda entry: Node("neg", (entry,)))
    if node.op == "add" and None not in parts:
        return _add(parts)
    if node.op == "div" and parts[1] is None:
        return parts[0] and _map(parts[0], lambda entry: Node("div", (entry, node.args[1])))
    if node.op == "mul":
        return _multiply(node.args, parts)
    return None


def _map(rows: Rows, function) -> Rows:
    return tuple(tuple(map(function, row)) for row in rows)


def _shape(rows: Rows) -> list[int]:
    return [len(row) for row in rows]


def _add(parts: list[Rows]) -> Rows | None:
    if any(_shape(part) != _shape(parts[0]) for part in parts):
        return None
    return tuple(tuple(Node("add", entries) for entries in zip(*rows)) for rows in zip(*parts))


def _multiply(factors: tuple[Node, ...], parts: list[Rows | None]) -> Rows | None:
    product = None
    for rows in parts:
        if rows is None:
            continue
        product = rows if product is None else _matrix_product(product, rows)
        if product is None:
            return None
    scalars = tuple(factor for factor, rows in zip(factors, parts) if rows is None)
    return _map(product, lambda entry: Node("mul", (*scalars, entry))) if scalars and product else product


def _matrix_product(left: Rows, right: Rows) -> Rows | None:
    if {len(row) for row in left} != {len(right)} or len({len(row) for row in right}) != 1:
        return None
    if len(left) * len(right) > MAX_ENTRIES or len(right) * len(right[0]) > MAX_ENTRIES:
        return None
    columns = list(zip(*right))
    return tuple(
        tuple(Node("add", tuple(Node("mul", pair) for pair in zip(row, column))) for column in columns) for row in left
    )
