"""LaTeX or plain mathematics -> tokens. One pass, one regular expression, no backtracking over more than a token."""

import re
from fractions import Fraction
from typing import NamedTuple

from rewards.math.nodes import Node

MAX_LENGTH = 4000
"""Characters of an answer; below CPython's own limit on converting digits to int."""
MAX_EXPONENT = 20_000
"""Of ten, in 1.2e3; a larger one is no number."""


class ParseError(ValueError):
    """The text is no mathematics that this grammar knows."""


class Token(NamedTuple):
    kind: str
    """number, letter, word, text, command, separator, environment, symbol, end"""
    text: str
    spaced: bool = False
    """Whether white space stands before it."""
    value: Node | None = None
    """Of a number."""


_TOKEN = r"""
    (?P<space> (?: \s | ~ | \\[ ,;:!>] | \\(?:quad|qquad|displaystyle|limits|hfill|nonumber|left|right|middle
        |[bB]igg?[lrm]?)(?![A-Za-z])\.? | \{{\}} )+ )
  | (?P<number> (?: (?: [1-9][0-9]{{0,2}} (?: (?: {comma} ,\\!\ ? | \ ?\{{,\ ?\}} | \\, | \\\ ) [0-9]{{3}} )+ (?![0-9])
        | [0-9]+ ) (?:\.[0-9]*)? | \.[0-9]+ ) (?: [eE][+-]?[0-9]{{1,9}}(?![A-Za-z0-9]) )? )
  | (?P<environment> \\(?:begin|end)\s*\{{[a-zA-Z]+\*?\}} (?:\{{[lcr|\s]*\}})? )
  | (?P<font> \\(?:text(?:bf|it|rm|sf|normal|tt)?|mathrm|mathbf|mathit|mathsf|mathcal|bm|boldsymbol|mbox|hbox
        |operatorname\*?|rm|bf)\s*\{{(?P<content>[^{{}}$]*)\}} )
  | (?P<set> \\(?:mathbb|Bbb|mathbf)\s*\{{?\s*(?P<name>[RZNQC])\s*\}}? )
  | (?P<command> \\(?:[A-Za-z]+|.) )
  | (?P<letters> [A-Za-z]+ )
  | (?P<symbol> <=|>=|!=|\*\*|<>|[-+*/^_=<>()\[\]{{}}|!,;:&'%] )
"""


# Between brackets a comma separates: (1,234) is a pair.
_OUTSIDE = re.compile(_TOKEN.format(comma=", |"), re.VERBOSE | re.DOTALL)
_INSIDE = re.compile(_TOKEN.format(comma=""), re.VERBOSE | re.DOTALL)

_REPETEND = re.compile(
    r"\\(?:overline|bar)\s*\{?(?P<bar>[0-9]+)\}?|\((?P<parens>[0-9]+)\)"
    r"|\\dot\s*\{?(?P<first>[0-9])\}?(?:(?P<middle>[0-9]*)\\dot\s*\{?(?P<last>[0-9])\}?)?"
)
_GROUPING = re.compile(r"[{},!\\ ]")
_DOTS = re.compile(r"\s*(?:\\[lc]?dots[bco]?(?![A-Za-z])|\.\.\.?)")

_COMMAND_NAMES = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt pi infty alpha beta gamma theta"
    " phi omega".split()
) | {"inf", "infinity", "union"}
_RENAMED = {"inf": "infty", "infinity": "infty", "union": "cup"}
_SHORT_WORDS = frozenset(
    "no on yes all any is of to in by at it if as cm km mm kg mg ml mL ft hr hrs lb lbs oz yd mph kph pct Hz".split()
)


def tokenize(text: str) -> list[Token]:
    """The tokens of a text, an "end" token last. Raises ParseError at a character that is no mathematics."""
    if len(text) > MAX_LENGTH:
        raise ParseError(f"longer than {MAX_LENGTH} characters")
    tokens: list[Token] = []
    position, depth, spaced = 0, 0, False
    while position < len(text):
        match = (_INSIDE if depth > 0 else _OUTSIDE).match(text, position)
        if match is None:
            raise ParseError(f"unexpected {text[position]!r}")
        kind, position = match.lastgroup, match.end()
        if kind == "space":
            # \left and \right are read as space, but separate nothing.
            spaced = spaced or not match[0].startswith(("\\left", "\\right", "\\big", "\\Big"))
            continue
        if kind == "number":
            value, position = _read_number(match[0], text, position)
            tokens.append(Token("number", match[0], spaced, value))
        elif kind == "letters":
            tokens.extend(_split_letters(match[0], spaced))
        elif match["font"] and not match["content"].strip(" .~"):
            spaced = True
            continue
        elif match["font"]:
            tokens.append(_font(match["content"].strip(), match[0].startswith("\\operatorname"), spaced))
        elif match["set"]:
            tokens.append(Token("command", "\\mathbb " + match["name"], spaced))
        else:
            tokens.append(Token(kind, match[0].replace(" ", "") if kind == "environment" else match[0], spaced))
            depth += (match[0] in ("(", "[", "\\{")) - (match[0] in (")", "]", "\\}"))
        spaced = False
    tokens.append(Token("end", "", spaced))
    return tokens


def _read_number(written: str, text: str, position: int) -> tuple[Node, int]:
    """The number and where it ends, with the repeating block or the dots that follow it."""
    mantissa, _, exponent = written.replace("E", "e").partition("e")
    mantissa = _GROUPING.sub("", mantissa)
    power = int(exponent or 0)
    if abs(power) > MAX_EXPONENT:
        raise ParseError(f"exponent {power} is too large")
    whole, point, decimals = mantissa.partition(".")
    if point and (repeating := _read_repeating(whole, decimals, text, position)):
        return repeating
    value = Fraction(f"{whole or 0}.{decimals or 0}") * Fraction(10) ** power
    if not decimals and not exponent:
        return Node("num", (value,)), position
    significant = len((whole + decimals).lstrip("0"))
    return Node("dec", (value, significant, Fraction(10) ** (power - len(decimals)))), position


def _read_repeating(whole: str, decimals: str, text: str, position: int) -> tuple[Node, int] | None:
    """0.1\\overline{6}, 0.\\dot{3}, 0.1(6), 0.1666...: exact."""
    match = _REPETEND.match(text, position)
    if match and match["parens"] and decimals and whole not in ("", "0"):
        return None  # 2.5(3) is a product
    if match:
        ends = (match["first"] or "") + (match["middle"] or "") + (match["last"] or "")
        block = match["bar"] or match["parens"] or ends
    elif decimals and (match := _DOTS.match(text, position)):
        block = _repeated_tail(decimals)
        decimals = decimals[: len(decimals) - len(block)] if block else decimals
    else:
        return None
    value = Fraction(f"{whole or 0}.{decimals or 0}")
    if not block:
        return Node("dec", (value, len((whole + decimals).lstrip("0")), Fraction(1, 10 ** len(decimals)))), match.end()
    value += Fraction(int(block), (10 ** len(block) - 1) * 10 ** len(decimals))
    return Node("num", (value,)), match.end()


def _repeated_tail(decimals: str) -> str:
    """The shortest block of digits that the end repeats ("" when it repeats nothing)."""
    for length in range(1, len(decimals) // 2 + 1):
        if decimals.endswith(decimals[-length:] * (3 if length == 1 and len(decimals) > 2 else 2)):
            return decimals[-length:]
    return ""


def _split_letters(run: str, spaced: bool) -> list[Token]:
    """Letters that stand together are a function's name, a word, or a product of variables."""
    if run.lower() in ("or", "and"):
        return [Token("separator", run.lower(), spaced)]
    if run.startswith("or") and run[2:].isupper():
        return [Token("separator", "or", spaced), *_split_letters(run[2:], False)]
    if run in _COMMAND_NAMES:
        return [Token("command", "\\" + _RENAMED.get(run, run), spaced)]
    if len(run) > 1 and _is_word(run):
        return [Token("word", run, spaced)]
    return [Token("letter", letter, spaced and index == 0) for index, letter in enumerate(run)]


def _is_word(run: str) -> bool:
    """Products of variables are short, and seldom hold a vowel: abc, xyz, MBCN; not odd, Sat, north."""
    if len(run) == 2 or run in _SHORT_WORDS:
        return run in _SHORT_WORDS or (run.istitle() and run.lower() in _SHORT_WORDS)
    return len(run) > 4 or run.istitle() or any(vowel in run for vowel in "eiou")


def _font(content: str, is_operator: bool, spaced: bool) -> Token:
    content = " ".join(content.replace("~", " ").replace("\\", " ").split())
    if content.lower().strip(",; ") in ("or", "and"):
        return Token("separator", content.lower().strip(",; "), True)
    if content in _COMMAND_NAMES or is_operator:
        return Token("command", "\\" + content, spaced)
    if len(content) == 1 and content.isalpha() and content.isascii():
        return Token("letter", content, True)
    return Token("text", content, True)
