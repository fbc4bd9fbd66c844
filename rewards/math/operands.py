"""What stands between operators: numbers, names, fractions, roots, functions."""

from fractions import Fraction

from rewards.math import grammar, units
from rewards.math.brackets import BracketReader
from rewards.math.lexer import ParseError, Token
from rewards.math.nodes import Node, call, number, symbol

MAX_DIGITS = 40
"""Of a number that has letters among its digits."""


class OperandReader(BracketReader):
    """Reads operands."""

    def parse_operand(self) -> Node:
        self.go_deeper()
        operand = self._read_operand(self.advance())
        self.depth -= 1
        return operand

    def _read_operand(self, token: Token) -> Node:
        if token.kind == "number":
            return self._number(token)
        if token.kind == "letter":
            return self._letter(token)
        if token.kind in ("word", "text"):
            return self._text(token)
        if token.kind == "environment" and token.text.startswith(r"\begin"):
            return self._matrix(token)
        if token.text in grammar.CLOSINGS:
            return self._brackets(token)
        if token.text in grammar.BARS:
            return self._bars(token)
        if token.kind == "command":
            return self._command(token)
        raise ParseError(f"unexpected {token.text!r}")

    def _starts_operand(self, token: Token, left: Node) -> bool:
        """Whether `token` after an operand means a product."""
        if left.op in ("text", "unit"):
            return False
        if token.kind == "letter":
            return not self._is_unit_letter(token, left)
        if token.text in ("|", r"\|"):
            return self.open_bars == 0
        if token.kind == "command":
            return not (
                token.text in grammar.RELATIONS
                or token.text in grammar.SET_OPERATORS
                or token.text in grammar.NOT_OPERANDS
            )
        return token.text in ("(", "[", "{") or (token.kind == "environment" and token.text.startswith(r"\begin"))

    # ---- arguments

    def parse_argument(self) -> Node:
        """What belongs to ^ or \\sqrt: a braced group, a signed operand."""
        token = self.peek()
        if token.text in ("+", "-"):
            self.advance()
            self.go_deeper()
            operand = self.parse_argument()
            self.depth -= 1
            return operand if token.text == "+" else Node("neg", (operand,))
        return self.parse_operand()

    def parse_single(self) -> Node:
        """An argument of \\frac: a braced group or one character, as TeX takes it (\\frac12 is a half)."""
        token = self.peek()
        if token.kind == "number" and token.text.isdigit() and len(token.text) > 1:
            rest = token.text[1:]
            self.tokens[self.position] = Token("number", rest, False, number(int(rest)))
            return number(int(token.text[0]))
        return self.parse_operand()

    def _skip_group(self, content: str) -> bool:
        """At `{content}`: moves to its closing brace."""
        if self.peek().text == "{" and self.peek(1).text == content and self.peek(2).text == "}":
            self.position += 2
            return True
        return False

    # ---- names and numbers

    def _number(self, token: Token) -> Node:
        if self.peek().text == "_" and token.text.isdigit():
            self.advance()
            return Node("base", (token.text, self._subscript()))
        if self.peek().kind == "letter" and token.text.isdigit() and (digits := self._based_digits(token.text)):
            return digits
        return self._mixed_number(token) or token.value

    def _mixed_number(self, whole: Token) -> Node | None:
        """3 1/2; `1 2` alone is nothing."""
        top, slash, bottom = self.peek(), self.peek(1), self.peek(2)
        numerals = top.kind == bottom.kind == "number" and all(part.text.isdigit() for part in (whole, top, bottom))
        if not (numerals and slash.text == "/" and top.spaced and int(top.text) < int(bottom.text)):
            return None
        self.position += 3
        return number(int(whole.text) + Fraction(int(top.text), int(bottom.text)))

    def _based_digits(self, digits: str) -> Node | None:
        """2E_{16}: digits and capital letters right up to a base above ten."""
        ahead = 0
        while ahead < MAX_DIGITS and self.peek(ahead).kind in ("letter", "number") and self.peek(ahead).text.isalnum():
            digits += self.peek(ahead).text
            ahead += 1
        start = self.position
        if self.peek(ahead).text == "_" and digits.isupper():
            self.position += ahead + 1
            base = self._subscript()
            if base.isdigit() and 10 < int(base[:9]) <= 36:
                return Node("base", (digits, base))
        self.position = start
        return None

    def _letter(self, token: Token) -> Node:
        name = self._decorated(token.text)
        if token.text in grammar.DEFINED_BY_LETTER and self._skip_inverse():
            name += "^-1"
        if name in grammar.LETTER_CONSTANTS:
            return grammar.LETTER_CONSTANTS[name]
        if self.peek().text == "(" and not self.peek().spaced and self._is_function(token.text):
            self.advance()
            arguments = self.parse_list((")",))
            self.expect(")")
            return Node("apply", (name, *(arguments.args if arguments.op == "list" else (arguments,))))
        return symbol(name)

    def _skip_inverse(self) -> bool:
        """At the ^{-1} of f^{-1}(x): moves to the bracket."""
        if [self.peek(ahead).text for ahead in range(6)] != ["^", "{", "-", "1", "}", "("]:
            return False
        self.position += 5
        return True

    def _is_function(self, letter: str) -> bool:
        if letter in grammar.DEFINED_BY_LETTER:
            return True
        one_argument = self.peek(2).text == ")" and self.peek(1).kind in ("letter", "number")
        return letter.isupper() and one_argument

    def _decorated(self, name: str) -> str:
        """The name with its subscript and primes."""
        if self.peek().text == "_":
            self.advance()
            name += f"_{self._subscript()}"
        while self.peek().text == "'":
            self.advance()
            name += "'"
        return name

    def _subscript(self) -> str:
        """As text: a subscript is part of a name."""
        if self.peek().text != "{":
            return self.advance().text
        self.advance()
        parts, depth = [], 1
        while depth:
            token = self.advance()
            if token.kind == "end":
                raise ParseError("'{' is not closed")
            depth += (token.text == "{") - (token.text == "}")
            parts.append(token.text)
        return " ".join(parts[:-1])

    def _text(self, token: Token) -> Node:
        words = [token.text]
        while self.peek().kind in ("word", "text"):
            words.append(self.advance().text)
        text = " ".join(words).strip()
        if not text:
            raise ParseError("empty text")
        if len(text) == 3 and text[0] == "(" and text[2] == ")":
            return symbol(text[1])
        if text.casefold() in grammar.ALL_REALS:
            return Node("named_set", ("R",))
        return Node("text", (text.casefold(),))

    # ---- commands

    def _command(self, token: Token) -> Node:
        name = token.text
        if name in grammar.CONSTANTS:
            return grammar.CONSTANTS[name]
        if name in grammar.FRACTIONS:
            return Node("div", (self.parse_single(), self.parse_single()))
        if name in grammar.BINOMIALS:
            return call("binomial", self.parse_single(), self.parse_single())
        if name == r"\sqrt":
            return self._root()
        if name[1:] in grammar.FUNCTIONS:
            return self._function(name[1:])
        if name in grammar.OPERATORS:
            return self._operator(name)
        if name in grammar.EMPTY_SETS:
            return grammar.EMPTY_SET
        if name in grammar.NAMED_SETS:
            return grammar.NAMED_SETS[name]
        if name in grammar.WRAPPERS:
            return self.parse_operand()
        if name in grammar.ACCENTS or name in grammar.MARKS:
            return symbol(f"{name} {self._accented(name)}")
        if name == r"\$" or name[1:] in units.CURRENCY:
            amount = self.parse_expression(grammar.SUM)
            return Node("unit", (amount, units.CURRENCY[name[1:]]))
        if name in grammar.DOTS or not name[1:].isalpha():
            raise ParseError(f"unexpected {name!r}")
        return symbol(self._decorated(name[1:]))

    def _accented(self, name: str) -> str:
        if self.peek().text == "{":
            return self._subscript()
        letters = self.advance().text
        while name in grammar.MARKS and self.peek().kind == "letter" and not self.peek().spaced:
            letters += " " + self.advance().text
        return letters

    def _root(self) -> Node:
        index = number(2)
        if self.peek().text == "[":
            self.advance()
            index = self.parse_expression(0)
            self.expect("]")
        return Node("root", (self.parse_argument(), index))

    def _function(self, name: str) -> Node:
        """sin x, \\sin^2 x, \\sin^{-1} x, \\log_2 8, \\sin(2x)y: brackets hold the whole argument."""
        base = exponent = None
        while self.peek().text in ("_", "^"):
            if self.advance().text == "_":
                base = self.parse_single()
            else:
                exponent = self.parse_argument()
        inverse = exponent in (number(-1), Node("neg", (number(1),))) and name in grammar.INVERSES
        function = grammar.INVERSES[name] if inverse else name
        if self.peek().text in ("(", "{", "[", r"\{"):
            argument = self.parse_operand()
        else:
            argument = self._bare_argument()
        arguments = (
            argument.args[2:] if argument.op == "seq" else argument.args if argument.op == "set" else (argument,)
        )
        result = call(function, *arguments) if base is None else call("log", argument, base)
        return result if exponent is None or inverse else Node("pow", (result, exponent))

    def _bare_argument(self) -> Node:
        """\\sin 2x \\cos x: factors up to the next function or operator."""
        argument = self.parse_expression(grammar.PRODUCT)
        while self._starts_operand(self.peek(), argument) and self.peek().text[1:] not in grammar.FUNCTIONS:
            if self.peek().text in ("(", "[", r"\{"):
                break
            argument = Node("mul", (argument, self.parse_expression(grammar.PRODUCT)))
        return argument

    def _operator(self, name: str) -> Node:
        """A sum, integral or limit: bounds and body, not evaluated."""
        parts = []
        while self.peek().text in ("_", "^"):
            self.advance()
            parts.append(self.parse_argument())
        if self.peek().kind != "end":
            parts.append(self.parse_expression(grammar.SUM))
        return Node("operator", (name, *parts))
