"""Numbers as people write them -> exact fractions, by regular expressions alone: the fast path of `verify`."""

import re
from fractions import Fraction

MAX_LENGTH = 4000
"""Characters; below CPython's own limit on converting digits to int."""
MAX_EXPONENT = 1000

_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5"}
_DECIMAL = r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_SIGN = r"([+-]?)"
_SIMPLE = re.compile(r"([+-]?[0-9]+)(?:\.([0-9]*))?", re.ASCII)
_SIMPLE_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?[0-9]+)\}\{(-?[0-9]+)\}", re.ASCII)
_PLAIN = re.compile(rf"{_SIGN}({_DECIMAL})(?:(?:[eE]|(?:\\times|\\cdot|\*)10\^)\{{?([+-]?[0-9]{{1,5}})\}}?)?")
_RATIO = re.compile(rf"{_SIGN}([+-]?{_DECIMAL})/([+-]?{_DECIMAL})")
_MIXED = re.compile(rf"{_SIGN}([0-9]+) ([0-9]+)/([0-9]+)")

_FRAC = re.compile(r"\\[dtc]?frac *(?:\{([^{}]*)\}|([0-9])) *(?:\{([^{}]*)\}|([0-9]))")
_AROUND_OPERATOR = re.compile(r" *([/^*+-]|\\times|\\cdot) *")


def parse_number(text: str) -> Fraction | None:
    """The exact value of a written number, or None when the text is anything else.

    Integers, decimals (`.5`, `5.`), signs (also U+2212), thousands (`1,234`, `1{,}234`, `1\\,234`), scientific notation
    (`1.2e3`, `1.2 \\times 10^{3}`), fractions (`3/4`, `\\frac{3}{4}`, `\\frac34`, `¾`), mixed numbers (`3 1/2`,
    `-2\\frac13` = -7/3), an optional dollar sign. No percents, no units; `12 3` is two numbers; ASCII digits only.
    """
    if len(text) > MAX_LENGTH:
        return None
    if match := _SIMPLE.fullmatch(text):
        whole, decimals = match.groups()
        return Fraction(int(whole + (decimals or "")), 10 ** len(decimals or ""))
    if match := _SIMPLE_FRACTION.fullmatch(text):
        sign, top, bottom = match.groups()
        return _signed(sign, _divide(Fraction(int(top)), Fraction(int(bottom))))
    return _parse_cleaned(_clean(text))


def _parse_cleaned(text: str) -> Fraction | None:
    if match := _PLAIN.fullmatch(text):
        sign, digits, exponent = match.groups()
        return _plain(sign + digits, int(exponent or 0))
    if match := _MIXED.fullmatch(text):
        sign, whole, top, bottom = match.groups()
        if int(top) >= int(bottom):
            return None
        return _signed(sign, Fraction(int(whole)) + Fraction(int(top), int(bottom)))
    if match := _RATIO.fullmatch(text):
        sign, top, bottom = match.groups()
        if sign and top[0] in "+-":
            return None
        return _signed(sign, _divide(_plain(top), _plain(bottom)))
    return None


def _plain(digits: str, exponent: int = 0) -> Fraction | None:
    if abs(exponent) > MAX_EXPONENT:
        return None
    return Fraction(digits.replace(",", "").rstrip(".")) * Fraction(10) ** exponent


def _divide(top: Fraction, bottom: Fraction) -> Fraction | None:
    return top / bottom if bottom else None


def _signed(sign: str, value: Fraction | None) -> Fraction | None:
    return -value if value is not None and sign == "-" else value


def _clean(text: str) -> str:
    """One spelling: plain minus, ASCII fractions, comma thousands, no dollar, single spaces and none by operators."""
    text = text.replace("−", "-").replace("{,}", ",").replace("\\!", "")
    text = re.sub(r"(?<=[0-9])\\,(?=[0-9]{3})", ",", text)
    text = _FRAC.sub(lambda found: f" {found[1] or found[2]}/{found[3] or found[4]} ", text)
    for char, fraction in _VULGAR.items():
        text = text.replace(char, f" {fraction} ")
    text = " ".join(text.split())
    text = _AROUND_OPERATOR.sub(r"\1", text)
    return re.sub(r"^([+-]?)\\?\$", r"\1", text).strip()
