"""Brackets, bars, matrices and units."""

from rewards.math import grammar, units
from rewards.math.lexer import ParseError, Token
from rewards.math.nodes import Node, call, number
from rewards.math.reader import TokenReader

_OPENING, _CLOSING = ("(", "[", "{", r"\{"), (")", "]", "}", r"\}")


def _within(member: Node, condition: Node) -> Node:
    """The condition alone of {x | ...} and {x in R | ...}; among whole numbers it means another set."""
    if member.op == "rel" and member.args[0] == ("in",) and member.args[2] != Node("named_set", ("R",)):
        return Node("intersection", (member, condition))
    return condition


class BracketReader(TokenReader):
    """Reads what is enclosed, and the unit behind a number."""

    def _brackets(self, opening: Token) -> Node:
        """A group, a tuple or interval, a set."""
        closings = grammar.CLOSINGS[opening.text]
        outer_bars, self.open_bars = self.open_bars, 0
        if opening.text == r"\{" and self.peek().text == r"\}":
            self.advance()
            self.open_bars = outer_bars
            return grammar.EMPTY_SET
        if opening.text == r"\{":
            self._read_colon_as_bar()
        content = self.parse_list((*closings, r"\mid", "|") if opening.text == r"\{" else closings)
        if opening.text == r"\{" and self.peek().text in (r"\mid", "|"):
            self.advance()
            content = _within(content, self.parse_list(closings))
            self.expect(*closings)
            self.open_bars = outer_bars
            return content
        closing = self.expect(*closings).text
        self.open_bars = outer_bars
        items = content.args if content.op in ("list", "or") else (content,)
        if opening.text == r"\{" or (opening.text == "{" and len(items) > 1):
            return Node("set", items)
        if len(items) == 1 and (opening.text, closing) not in (("(", "]"), ("[", ")")):
            return content
        return Node("seq", (opening.text, closing, *items))

    def _read_colon_as_bar(self) -> None:
        """{x : x > 2} is {x | x > 2}; a set of ratios holds no relation after a colon."""
        colon, depth = None, 0
        for index in range(self.position, len(self.tokens)):
            token = self.tokens[index]
            if token.kind == "end" or depth < 0:
                return
            depth += (token.text in _OPENING) - (token.text in _CLOSING)
            if token.text == ":" and depth == 0 and colon is None:
                colon = index
            elif colon is not None and depth == 0 and token.text in grammar.RELATIONS:
                self.tokens[colon] = Token("command", r"\mid", True)
                return

    def _bars(self, opening: Token) -> Node:
        self.open_bars += 1
        content = self.parse_list((grammar.BARS[opening.text],))
        self.expect(grammar.BARS[opening.text])
        self.open_bars -= 1
        return call(grammar.BAR_FUNCTIONS[opening.text], content)

    def _matrix(self, opening: Token) -> Node:
        kind = opening.text.partition("{")[2].partition("}")[0]
        rows, entries = [], []
        while True:
            entries.append(self.parse_list(("&", r"\\", r"\end{" + kind + "}")))
            token = self.expect("&", r"\\", "environment")
            if token.text != "&":
                rows.append(Node("row", tuple(entries)))
                entries = []
            if token.kind == "environment" or self.peek().text == r"\end{" + kind + "}":
                break
        if token.kind != "environment":
            self.advance()
        return Node("matrix", ("det" if kind == "vmatrix" else "matrix", *rows))

    def read_unit(self, value: Node) -> Node:
        """The words, powers and slashes behind a number. Raises ParseError when they are no unit."""
        parts = []
        while True:
            token = self.peek()
            if token.text in ("/", r"\cdot", "*") and parts and self.peek(1).kind in ("word", "text", "letter"):
                parts.append("/" if self.advance().text == "/" else " ")
            elif token.text == "^" and parts:
                self.advance()
                exponent = self.parse_argument()
                parts[-1] += f"^{exponent.args[0]}"
            elif token.kind in ("word", "text") or (token.kind == "letter" and (token.text in units.LETTERS or parts)):
                parts.append(self.advance().text)
            else:
                break
        text = " ".join(parts).strip()
        if text.lower() in units.PERCENT:
            return Node("percent", (value,))
        first, _, rest = text.partition(" ")
        if first.lower() in units.SCALES:
            value = Node("mul", (value, number(units.SCALES[first.lower()])))
            text = rest
            if not text:
                return value
        unit = units.parse_unit(text)
        if unit is None:
            raise ParseError(f"{text!r} is no unit")
        return Node("degree", (value,)) if unit == "degree" else Node("unit", (value, unit))
