"""The worker's side: trees -> sympy, for what needs algebra. Run as `python -m rewards.math.symbolic`.

One JSON request a line on stdin: {"task": "sets" | "values", "gold": tree, "answer": tree}; one JSON reply a line on
stdout: {"equal": true | false | null}, null for "do not know". The parent keeps the time and kills. Only trees come
in, never text, so there is nothing here to evaluate.
"""

import json
import sys
from fractions import Fraction
from typing import Any

from rewards.math.nodes import Node, number

MEMORY_LIMIT = 2 << 30
CPU_SECONDS = 20
"""For one request, should the parent die while we compute."""


def encode(node: Node) -> list:
    """A tree as JSON values."""
    return [node.op, *map(_encode_part, node.args)]


def _encode_part(part: Any) -> Any:
    if isinstance(part, Node):
        return {"node": encode(part)}
    return {"fraction": str(part)} if isinstance(part, Fraction) else part


def decode(tree: list) -> Node:
    """The inverse of `encode`."""
    return Node(tree[0], tuple(map(_decode_part, tree[1:])))


def _decode_part(part: Any) -> Any:
    if isinstance(part, dict):
        return decode(part["node"]) if "node" in part else Fraction(part["fraction"])
    return tuple(part) if isinstance(part, list) else part


_UNKNOWN = Node("sym", ("x",))
WARM_UP = (
    Node("rel", (("<",), Node("pow", (_UNKNOWN, number(2))), number(4))),
    Node("seq", ("(", ")", number(-2), number(2))),
)


class Unsupported(ValueError):
    """A form that has no counterpart here."""


class Builder:
    """Trees -> sympy objects."""

    def __init__(self):
        import sympy

        self.sympy = sympy

    def same_sets(self, gold: Node, answer: Node) -> bool | None:
        one, other = self.real_set(gold), self.real_set(answer)
        if one == other:
            return True
        rest = self.sympy.SymmetricDifference(one, other)
        return rest.is_empty

    def same_values(self, gold: Node, answer: Node) -> bool | None:
        difference = self.value(gold) - self.value(answer)
        return difference.equals(0)

    # ---- sets of real numbers

    def real_set(self, node: Node) -> Any:
        sympy = self.sympy
        if node.op == "rel":
            return self._solutions(node)
        if node.op in ("union", "or", "intersection", "list", "minus"):
            parts = [self.real_set(part) for part in node.args]
            if node.op == "minus":
                return sympy.Complement(*parts)
            solutions = any(part.op == "rel" and part.args[0] == ("=",) for part in node.args)
            return (sympy.Union if solutions or node.op in ("union", "or") else sympy.Intersection)(*parts)
        if node.op == "seq" and len(node.args) == 4:
            opening, closing, low, high = node.args
            return sympy.Interval(self.value(low), self.value(high), opening == "(", closing == ")")
        if node.op == "set":
            return sympy.FiniteSet(*map(self.value, node.args))
        if node == Node("named_set", ("R",)):
            return sympy.S.Reals
        raise Unsupported(node.op)

    def _solutions(self, node: Node) -> Any:
        sympy = self.sympy
        operators, *sides = node.args
        if operators == ("in",):
            return self.real_set(sides[1])
        kinds = {"=": sympy.Eq, "!=": sympy.Ne, "<": sympy.Lt, "<=": sympy.Le, ">": sympy.Gt, ">=": sympy.Ge}
        values = [self.value(side) for side in sides]
        (unknown,) = set().union(*(value.free_symbols for value in values))
        result = sympy.S.Reals
        for operator, left, right in zip(operators, values, values[1:]):
            if operator not in kinds:
                raise Unsupported(operator)
            result &= sympy.solveset(kinds[operator](left, right), unknown, sympy.S.Reals)
        return result

    # ---- values

    def value(self, node: Node) -> Any:
        sympy = self.sympy
        op, args = node
        if op in ("num", "dec"):
            return sympy.Rational(args[0].numerator, args[0].denominator)
        if op == "sym":
            return sympy.Symbol(args[0], real=True)
        if op == "const":
            return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "infinity": sympy.oo}[args[0]]
        if op == "operator":
            return self._operator(*args)
        if op == "call":
            return self._function(args[0])(*map(self.value, args[1:]))
        operations = {
            "neg": lambda value: -value,
            "add": sympy.Add,
            "mul": sympy.Mul,
            "div": lambda top, bottom: top / bottom,
            "pow": sympy.Pow,
            "root": lambda radicand, index: sympy.root(radicand, index),
            "percent": lambda value: value / 100,
            "degree": lambda value: value * sympy.pi / 180,
        }
        if op not in operations:
            raise Unsupported(op)
        return operations[op](*map(self.value, args))

    def _function(self, name: str) -> Any:
        sympy = self.sympy
        names = {
            **{name: name for name in "sin cos tan cot sec csc sinh cosh tanh exp ln factorial binomial floor".split()},
            **{"arcsin": "asin", "arccos": "acos", "arctan": "atan", "abs": "Abs", "ceil": "ceiling", "sgn": "sign"},
            **{"max": "Max", "min": "Min", "Gamma": "gamma", "gcd": "gcd", "lcm": "lcm"},
        }
        if name in ("log", "lg"):
            return lambda value, base=10: sympy.log(value, base)
        if name not in names:
            raise Unsupported(name)
        return getattr(sympy, names[name])

    def _operator(self, name: str, *parts: Node) -> Any:
        sympy = self.sympy
        if name in (r"\sum", r"\prod") and len(parts) == 3 and parts[0].op == "rel":
            index, start = map(self.value, parts[0].args[1:])
            build = sympy.Sum if name == r"\sum" else sympy.Product
            return build(self.value(parts[2]), (index, start, self.value(parts[1]))).doit()
        if name == r"\int" and len(parts) == 3 and parts[2].op == "mul":
            *factors, d, variable = parts[2].args
            if d != Node("sym", ("d",)):
                raise Unsupported(name)
            body = sympy.Mul(*map(self.value, factors))
            return sympy.integrate(body, (self.value(variable), self.value(parts[0]), self.value(parts[1])))
        if name == r"\lim" and len(parts) == 2 and parts[0].op == "rel":
            variable, point = map(self.value, parts[0].args[1:])
            return sympy.limit(self.value(parts[1]), variable, point)
        raise Unsupported(name)


def main() -> None:
    replies = sys.stdout
    sys.stdout = sys.stderr  # Nothing that sympy prints may pass for a reply.
    builder = Builder()
    builder.same_sets(*WARM_UP)  # Loads what the first request would wait for.
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        _limit_resources()
        request = json.loads(line)
        compare = {"sets": builder.same_sets, "values": builder.same_values}[request["task"]]
        try:
            equal = compare(decode(request["gold"]), decode(request["answer"]))
        except (
            ArithmeticError,
            AttributeError,
            MemoryError,
            NotImplementedError,
            RecursionError,
            TypeError,
            ValueError,
        ):
            equal = None  # Not solvable, or a form of sympy that does not allow the question.
        print(json.dumps({"equal": None if equal is None else bool(equal)}), file=replies, flush=True)


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:  # Windows: the parent's deadline alone holds.
        return
    spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent) + CPU_SECONDS, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
