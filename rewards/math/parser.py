"""Tokens -> tree: a Pratt parser (Pratt 1973, "Top down operator precedence") for what people write as an answer."""

import re

from rewards.math import grammar, units
from rewards.math.grammar import PRODUCT, RELATION, RELATIONS
from rewards.math.lexer import ParseError, Token, tokenize
from rewards.math.nodes import Node, call, children, number, symbol
from rewards.math.operands import OperandReader
from rewards.math.reader import MAX_DEPTH

MAX_NODES = 2000
_TEMPERATURES = {"C": "celsius", "F": "fahrenheit"}
_DECIMAL_COMMA = re.compile(r"(?<![0-9.,])(0|[0-9]+(?=,(?:[0-9]{1,2}|[0-9]{4,})(?![0-9]))),([0-9]+)(?![0-9.,])")


def parse(text: str, *, decimal_comma: bool = False) -> Node:
    """The tree of an answer in LaTeX or plain notation; see `nodes` for its forms. Raises ParseError.

    Brackets may be nested 80 deep. The text is at most 4,000 characters and needs no `$`.
    """
    if decimal_comma:
        text = _DECIMAL_COMMA.sub(r"\1.\2", text)
    parser = Parser(tokenize(text))
    node = parser.parse_list(("end",))
    parser.expect("end")
    if len(parser.tokens) > MAX_DEPTH:
        _check_depth(node)
    return node


class Parser(OperandReader):
    """Operators and lists."""

    # ---- lists

    def parse_list(self, closings: tuple[str, ...]) -> Node:
        """Items up to one of the closing signs (not consumed): the item itself when there is but one."""
        groups: list[list[Node]] = [[]]
        joined_by_or = semicolons = False
        while self.peek().text not in closings and self.peek().kind != "end":
            token = self.peek()
            if token.kind == "separator" or token.text in (",", ";"):
                self.advance()
                joined_by_or |= token.text == "or"
                if token.text == ";":
                    semicolons = True
                    groups.append([])
                continue
            groups[-1].append(self.parse_expression(0))
            if not self._at_boundary(closings):
                raise ParseError(f"unexpected {self.peek().text!r}")
        groups = [group for group in groups if group]
        if semicolons and any(len(group) > 1 for group in groups):
            items = [_join(group, "list") for group in groups]
        else:
            items = [item for group in groups for item in group]
        if not items:
            raise ParseError("nothing there")
        return _join(items, "or" if joined_by_or else "list")

    def _at_boundary(self, closings: tuple[str, ...]) -> bool:
        token = self.peek()
        return token.kind in ("separator", "end") or token.text in (",", ";") or token.text in closings

    # ---- expressions

    def parse_expression(self, power: int) -> Node:
        """An expression whose operators bind tighter than `power`."""
        left = self.parse_prefix()
        while (step := self.parse_infix(left, power)) is not None:
            left = step
            self.num_nodes += 1
            if self.num_nodes > MAX_NODES:
                raise ParseError(f"more than {MAX_NODES} operations")
        return left

    def parse_prefix(self) -> Node:
        token = self.peek()
        if token.text not in ("+", "-", r"\pm", r"\mp"):
            return self.parse_operand()
        self.advance()
        self.go_deeper()
        operand = self.parse_expression(grammar.SUM)
        self.depth -= 1
        if token.text in (r"\pm", r"\mp"):
            return Node("pm", (None, operand, token.text))
        return operand if token.text == "+" else _negate(operand)

    def parse_infix(self, left: Node, power: int) -> Node | None:
        """`left` extended by the next operator, or None when that binds no tighter than `power`."""
        token = self.peek()
        if token.kind == "end" or token.kind == "separator":
            return None
        for reader in (self._postfix, self._product, self._sum, self._unit, self._set_operator, self._relation):
            node = reader(left, token, power)
            if node is not None:
                return node
        return None

    def _postfix(self, left: Node, token: Token, power: int) -> Node | None:
        if power >= grammar.POSTFIX:
            return None
        if token.text == "!" and self.peek(1).text != "=":
            self.advance()
            return call("factorial", left)
        if token.text in ("%", r"\%"):
            self.advance()
            return Node("percent", (left,))
        if token.text == r"\degree":
            self.advance()
            return Node("degree", (left,))
        if token.text in ("^", "**"):
            return self._power(left, power)
        return None

    def _power(self, left: Node, power: int) -> Node | None:
        if power > grammar.POWER:
            return None
        self.advance()
        if self.peek().text in (r"\circ", r"\degree") or self._skip_group(r"\circ"):
            self.advance()
            return self._temperature(left) or Node("degree", (left,))
        if self.peek().text == r"\prime":
            self.advance()
            return symbol(f"{left.args[0]}'") if left.op == "sym" else left
        exponent = self.parse_argument()
        if self.peek().text in ("^", "**"):
            self.go_deeper()
            exponent = self._power(exponent, power)
            self.depth -= 1
        return Node("pow", (left, exponent))

    def _temperature(self, left: Node) -> Node | None:
        name = _TEMPERATURES.get(self.peek().text)
        if name is None or self.peek(1).kind not in ("end", "separator"):
            return None
        self.advance()
        return Node("unit", (left, f"degree {name}"))

    def _product(self, left: Node, token: Token, power: int) -> Node | None:
        if power >= PRODUCT:
            return None
        if token.text in grammar.PRODUCTS:
            self.advance()
            right = self.parse_expression(PRODUCT)
            return (
                Node("div", (left, right)) if grammar.PRODUCTS[token.text] == "div" else _join_flat("mul", left, right)
            )
        if self._starts_operand(token, left):
            right = self.parse_expression(PRODUCT)
            return _mixed_number(left, right) or _join_flat("mul", left, right)
        return None

    def _sum(self, left: Node, token: Token, power: int) -> Node | None:
        if power >= grammar.SUM or token.text not in ("+", "-", r"\pm", r"\mp"):
            return None
        self.advance()
        right = self.parse_expression(grammar.SUM)
        if token.text in (r"\pm", r"\mp"):
            return Node("pm", (left, right, token.text))
        return _join_flat("add", left, right if token.text == "+" else _negate(right))

    def _unit(self, left: Node, token: Token, power: int) -> Node | None:
        if power >= grammar.UNIT:
            return None
        if token.kind in ("word", "text") or self._is_unit_letter(token, left):
            return self.read_unit(left)
        if token.text == r"\$":
            self.advance()
            return Node("unit", (left, "dollar"))
        return None

    def _is_unit_letter(self, token: Token, left: Node) -> bool:
        """`5 m` has a unit, `5m` is a product."""
        following = self.peek(1)
        ends = following.kind in ("end", "separator") or following.text in ("/", "^", ",", ";", ")", "}", r"\}")
        return token.kind == "letter" and token.spaced and token.text in units.LETTERS and ends and _is_numeric(left)

    def _set_operator(self, left: Node, token: Token, power: int) -> Node | None:
        if token.text in grammar.SET_OPERATORS and power < grammar.SETS:
            self.advance()
            return Node(grammar.SET_OPERATORS[token.text], (left, self.parse_expression(grammar.SETS)))
        if token.text == r"\choose" and power < grammar.RATIO:
            self.advance()
            return call("binomial", left, self.parse_expression(grammar.RATIO))
        if token.text == ":" and power < grammar.RATIO:
            self.advance()
            right = self.parse_expression(grammar.RATIO)
            parts = left.args if left.op == "ratio" else (left,)
            return Node("ratio", (*parts, right))
        return None

    def _relation(self, left: Node, token: Token, power: int) -> Node | None:
        if power >= RELATION or token.text not in RELATIONS:
            return self._modulus(left) if token.text in grammar.MODULI and power < RELATION else None
        self.advance()
        name = RELATIONS[token.text]
        right = self.parse_expression(RELATION)
        if left.op == "rel":
            return Node("rel", ((*left.args[0], name), *left.args[1:], right))
        return Node("rel", ((name,), left, right))

    def _modulus(self, left: Node) -> Node:
        self.advance()
        operators, sides = (left.args[0], left.args[1:]) if left.op == "rel" else ((), (left,))
        return Node("rel", ((*operators, "mod"), *sides, self.parse_expression(RELATION)))


def _join(items: list[Node], op: str) -> Node:
    return items[0] if len(items) == 1 else Node(op, tuple(items))


def _join_flat(op: str, left: Node, right: Node) -> Node:
    """A long sum is one node, not a tower."""
    return Node(op, (*(left.args if left.op == op else (left,)), right))


def _check_depth(node: Node) -> None:
    level = [node]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in children(parent)]
        if not level:
            return
    raise ParseError(f"nested deeper than {MAX_DEPTH}")


def _negate(operand: Node) -> Node:
    """-5 is a number, so that it prints as one."""
    if operand.op in ("num", "dec"):
        return Node(operand.op, (-operand.args[0], *operand.args[1:]))
    return Node("neg", (operand,))


def _mixed_number(left: Node, right: Node) -> Node | None:
    """3 1/2 and 3\\frac12: a whole number before a proper fraction of whole numbers is added, not multiplied."""
    if left.op != "num" or right.op != "div" or any(part.op != "num" for part in right.args):
        return None
    whole, top, bottom = left.args[0], right.args[0].args[0], right.args[1].args[0]
    if whole.denominator != 1 or not 0 < top < bottom or top.denominator != 1 or bottom.denominator != 1:
        return None
    return number(whole + top / bottom) if whole >= 0 else None


def _is_numeric(node: Node) -> bool:
    return node.op in ("num", "dec", "const") or (
        node.op in ("neg", "div", "mul", "add", "pow", "root", "pm") and all(map(_is_numeric, children(node)))
    )
