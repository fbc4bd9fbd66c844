"""The tokens, where we are in them, and how deep."""

from rewards.math.lexer import ParseError, Token
from rewards.math.nodes import Node

MAX_DEPTH = 80
"""Of the tree and of the parser's own nesting: it and what walks the tree take a few Python frames a level."""
LOOKAHEAD = 64
"""Ends behind the end, so that nobody has to ask before looking ahead."""


class TokenReader:
    """The base of the parser, which is written in three layers: brackets, operands, operators."""

    def __init__(self, tokens: list[Token]):
        self.tokens = tokens + tokens[-1:] * LOOKAHEAD
        self.position = 0
        self.depth = 0
        self.open_bars = 0
        self.num_nodes = 0

    def peek(self, ahead: int = 0) -> Token:
        return self.tokens[self.position + ahead]

    def advance(self) -> Token:
        token = self.peek()
        self.position += 1
        return token

    def expect(self, *texts: str) -> Token:
        """The next token, which must be one of these texts or of one of these kinds."""
        token = self.advance()
        if token.text not in texts and token.kind not in texts:
            raise ParseError(f"{' or '.join(texts)} expected, not {token.text!r}")
        return token

    def go_deeper(self) -> None:
        """Counts one level of nesting; whoever calls it counts it down again."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ParseError(f"nested deeper than {MAX_DEPTH}")

    # ---- the upper layers, for the lower ones

    def parse_list(self, closings: tuple[str, ...]) -> Node:
        raise NotImplementedError

    def parse_expression(self, power: int) -> Node:
        raise NotImplementedError

    def parse_operand(self) -> Node:
        raise NotImplementedError

    def parse_argument(self) -> Node:
        raise NotImplementedError
