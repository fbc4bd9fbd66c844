"""Answers made to crash, to stall or to run code: wrong, and cheap. None of them may need the worker."""

import time

import pytest

from rewards.math import check
from rewards.math.worker import pool

HOSTILE = {
    "tower": "9^{9^{9^{9}}}",
    "plain tower": "9**9**9**9",
    "tower in a fraction": r"\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}",
    "factorials": "((9!)!)!",
    "factorial": "(10^7)!",
    "factorial of a factorial": "1,234!!",
    "binomial": r"\binom{100000000}{50000000}",
    "negative power": "2^{-9999999999}",
    "sum": r"\sum_{k=1}^{10000000}\frac{1}{k}",
    "product": r"\prod_{k=1}^{1000000}k",
    "integral": r"\int_0^1 x^x \sin(x^2) e^{\tan x}\,dx",
    "parentheses": "(" * 1999 + "1" + ")" * 1999,
    "open parentheses": "(" * 4000,
    "fractions": r"\frac{1}{" * 190 + "1" + "}" * 190,
    "bare fractions": r"\frac" * 800,
    "roots": r"\sqrt" * 790,
    "minus": "-" * 3999 + "1",
    "powers": "2" + "^2" * 1500,
    "bangs": "5" + "!" * 3000,
    "percents": "5" + "%" * 3000,
    "divisions": "1" + "/3" * 1900,
    "terms": "+".join(["x^2"] * 900),
    "bars": "|" * 3999,
    "subscripts": "x_{" * 1300,
    "list": ",".join(map(str, range(1, 1000))),
    "signs": ",".join([r"\pm 1\pm x\pm y"] * 200),
    "digits": "9" * 4000,
    "a megabyte of digits": "9" * 1_000_000,
    "decimals": "0." + "3" * 3900,
    "exponent": "1e999999999",
    "large exponent": "1e19999",
    "exponentials": "e^{e^{e^{e^{10}}}}",
    "large sine": r"\sin(10^{5000})",
    "degree": "(x+1)^{99999}",
    "equations": "1=2=" * 700 + "1",
    "inequalities": "x<" * 1500 + "x",
    "unions": r"(1,2)\cup" * 500 + "(3,4)",
    "columns": r"\begin{pmatrix}" + "&".join("1" * 900) + r"\end{pmatrix}",
    "open matrices": r"\begin{pmatrix}" * 250,
    "texts": r"\text{a}" * 500,
    "open texts": r"\text{" * 600,
    "complex power": "(1+i)^{10^{6}}",
    "logarithm": r"\ln 0",
    "code": '__import__("os").system("true")',
    "exec": 'exec("import os")',
    "null": "\x00" * 100,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_wrong_quickly(name):
    started = pool().counts["started"]
    begin = time.process_time()
    for gold in ("5", "1", r"\sqrt2", "x^2<4", "(1,2)", "x+1", "1,2"):
        assert check(gold, HOSTILE[name]).reason in ("mismatch", "no_answer"), gold
    assert time.process_time() - begin < 7 * 2.5
    assert pool().counts["started"] == started


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_golds_are_no_crash(name):
    check(HOSTILE[name], "5")
    check(HOSTILE[name], HOSTILE[name])
