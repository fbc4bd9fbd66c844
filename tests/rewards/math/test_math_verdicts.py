"""Pairs (gold, answer) by category: what counts as the same answer, and what must not."""

import pytest

from rewards.math import Policy, check, verify

EQUAL = {
    "format": [
        ("5", r"\boxed{5}"),
        ("5", "{5}"),
        ("5", r"\[5\]"),
        ("5", r"\mathbf{5}"),
        ("5", r"5\,"),
        (r"\left(\frac12\right)", r"\frac12"),
        (r"\dfrac{3}{4}", r"\tfrac34"),
        (r"\\frac{1}{2}", r"\frac12"),
        ("5", "5<|im_end|>"),
        ("-3", "−3"),
    ],
    "numbers": [
        ("6", "3!"),
        ("25", "5^2"),
        ("17", "17."),
        ("1000000", "10^6"),
        ("1{,}234{,}567", "1234567"),
        ("1/2", "2^{-1}"),
        ("0", "-0"),
        (r"3\frac12", "3.5"),
        ("3 1/2", "7/2"),
        ("½", "0.5"),
        ("1.2e3", r"1.2\times10^{3}"),
        ("1.2 x 10^3", "1200"),
        (r"5\text{ million}", "5000000"),
        ("512", "2^3^2"),
    ],
    "repeating": [
        (r"0.\overline{3}", "1/3"),
        (r"0.1\overline{6}", r"\frac16"),
        ("0.333...", r"\frac13"),
        (r"0.\dot{1}4285\dot{7}", "1/7"),
        ("0.(3)", "1/3"),
    ],
    "precision": [
        (r"\pi", "3.141592653"),
        (r"\sqrt2", "1.414214"),
        ("1/3", "0.33333333333"),
        ("4.123105625617661", r"\sqrt{17}"),
        (r"10^{10^{10}}", r"10^{10^{10}}"),
        (r"10^{10^{10}}+1", r"1+10^{10^{10}}"),
        ("2^{100}", "4^{50}"),
    ],
    "percent": [
        (r"50\%", "50"),
        (r"50\%", "0.5"),
        (r"50\%", r"\frac12"),
        ("1", r"100\%"),
        ("1.5", r"150\%"),
        (r"28\%", "28 percent"),
        (r"28\%", "28 pct"),
    ],
    "units": [
        (r"10\text{ cm}", "10"),
        ("10", "10 cm"),
        (r"15\text{ cm}^2", r"15\text{ square centimeters}"),
        (r"5\text{ m/s}", r"5\text{ meters per second}"),
        (r"\$12", r"12\text{ dollars}"),
        ("18 eggs", "18 duck eggs"),
        (r"\text{5 apples}", "5"),
        ("10 m", "10 meters"),
        (r"45^\circ", r"45\text{ degrees}"),
        (r"45^\circ", "45°"),
        (r"\angle ABC=60^\circ", "60"),
    ],
    "lists": [
        (r"\{1,2\}", "1,2"),
        (r"\{5\}", "5"),
        ("1,2,3", "1, 2, and 3"),
        ("2,3", "2 or 3"),
        ("$1$ and $2$", "2, 1"),
        (r"1\pm\sqrt{2}", r"1+\sqrt2, 1-\sqrt2"),
        (r"\pm1,\pm2", "1,-1,2,-2"),
        ("(1,2),(3,4)", "(3,4),(1,2)"),
        (r"4 \text{ or } 6", "x=4 or x=6"),
        (r"\varnothing", r"\{\}"),
        ("x=1, y=2", "(1,2)"),
        ("(x,y)=(1,2)", "x=1,y=2"),
        ("x=1,y=2", "y=2,x=1"),
        ("p=5,q=2;p=7,q=2", "(5,2),(7,2)"),
        ("x_{1}=1,x_{2}=2", "1,2"),
        ("a=4,-8", "-8,4"),
    ],
    "tuples": [
        ("(1,2)", r"\left( 1, 2 \right)"),
        (r"(\frac12,3)", "(0.5,3)"),
        (r"\langle 1,2\rangle", "(1,2)"),
        ("(0;1;2)", "(0,1,2)"),
    ],
    "matrices": [
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
        (r"\begin{pmatrix}0.5&1\end{pmatrix}", r"\begin{pmatrix}\frac12&1\end{pmatrix}"),
        (r"\begin{pmatrix}2&4\end{pmatrix}", r"2\begin{pmatrix}1&2\end{pmatrix}"),
        (r"\begin{pmatrix}5\\11\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
    "assignments": [
        ("x=3", "3"),
        ("3", "x=3"),
        ("5", "x=2+3=5"),
        ("f(x)=x^2+1", "y=x^2+1"),
        ("W(n)=1", "W(x)=1"),
        (r"\frac{AB}{CD}=\frac12", "0.5"),
        ("11", r"x\approx11"),
        (r"\pi", r"x=\pi\approx3.14"),
        (r"\text{Area}=12", "12"),
        ("a:b=1:2", "1:2"),
    ],
    "equations": [
        (r"y=\frac{1}{2}x+3", "x-2y+6=0"),
        ("x+y=5", "y=5-x"),
        ("x^2-4=0", r"x=\pm 2"),
        ("x^3=8", "x=2"),
        (r"x\equiv 3\pmod{5}", r"x \equiv 3 \pmod 5"),
    ],
    "inequalities": [
        ("(1,3)", "1<x<3"),
        ("1<x<3", "(1,3)"),
        (r"x\in(1,3)", "1<x<3"),
        ("x>3", "3<x"),
        (r"x\ge 3", r"[3,\infty)"),
        ("2a<2b", "a<b"),
        (r"x<1\text{ or }x>2", r"(-\infty,1)\cup(2,\infty)"),
        ("x>1, x<3", "(1,3)"),
        (r"x\neq 1", r"(-\infty,1)\cup(1,\infty)"),
        (r"\mathbb{R}\setminus\{1\}", r"(-\infty,1)\cup(1,\infty)"),
        (r"\mathbb{R}", r"(-\infty,\infty)"),
        (r"\{x\mid x>2\}", r"(2,\infty)"),
        ("[1,3]", r"[1,2]\cup[2,3]"),
        ("x^2<4", "(-2,2)"),
        (r"x^2\le 2", r"[-\sqrt2,\sqrt2]"),
        ("1<x^2<4", r"(-2,-1)\cup(1,2)"),
        (r"\frac{x-1}{x+2}\le0", "(-2,1]"),
        (r"x^2(x-3)\geq 0", r"\{0\}\cup[3,\infty)"),
        ("x^2+1>0", r"\mathbb{R}"),
    ],
    "expressions": [
        ("x^2+2x+1", "(x+1)^2"),
        (r"\frac{1}{x}-\frac{1}{x+1}", r"\frac{1}{x(x+1)}"),
        ("2^{n+1}", r"2\cdot 2^n"),
        (r"\sqrt{x^2}", "|x|"),
        (r"\ln(x^2)", r"2\ln x"),
        (r"2\sqrt 2", "2*sqrt(2)"),
        (r"\sqrt[3]{-8}", "-2"),
        ("8^{2/3}", "4"),
        (r"{5 \choose 2}", "10"),
        (r"\left\lfloor 2.5\right\rfloor", "2"),
        (r"F=\sum_{k=0}^{n-1} a_k b_{n-k}", r"F=\sum_{k=0}^{n-1} b_{n-k} a_k"),
    ],
    "functions": [
        (r"\sin^2 x+\cos^2 x", "1"),
        (r"\sin 30^\circ", r"\frac12"),
        (r"\log_2 8", "3"),
        (r"e^{\ln 3}", "3"),
        (r"\sin^{-1} 1", r"\frac{\pi}{2}"),
        (r"\tan x", r"\frac{\sin x}{\cos x}"),
    ],
    "complex": [("-1", "i^2"), ("5", "(2+i)(2-i)"), (r"e^{i\pi}", "-1"), ("|3+4i|", "5"), (r"\frac{1}{i}", "-i")],
    "text and choices": [
        (r"\text{Monday}", "monday"),
        ("yes", r"\text{Yes.}"),
        (r"\text{no solution}", "No solution"),
        ("A", "(a)"),
        ("C", r"\text{(C) }5"),
        ("C", r"\textbf{(C)}\ 42"),
        ("C", "C. 42"),
        ("odd", r"\text{odd}"),
    ],
    "absolute values": [("-2<x<2", "|x|<2"), ("|x-1|<3", "(-2,4)"), ("|x|>2", "x>2 or x<-2")],
    "set builders": [
        (r"\{x\in\mathbb{R}:x>2\}", "x>2"),
        (r"\{x:x>2\}", r"(2,\infty)"),
        (r"\{x\in\mathbb{Z}:x>2\}", r"\{x\in\mathbb{Z}\mid x>2\}"),
        (r"\mathbb{R}", r"\text{all real numbers}"),
    ],
    "order of names": [("(1,2)", "y=2,x=1"), ("(7,3)", "s=7,d=3")],
    "repeated items": [("1,1,2", "2,1,1"), ("1,2", "2,1,2")],
    "functions of whole numbers": [(r"\binom{n}{2}", r"\frac{n(n-1)}{2}"), ("n!", r"n\cdot(n-1)!")],
    "dressed up": [
        ("42", r"42\degree"),
        ("7", "`7`"),
        ("7", r"7\ "),
        ("7", r"\color{red}7"),
        ("7", r"\textcolor{red}{7}"),
        ("7", r"\phantom{8}7"),
        ("7", r"7 \text{ }"),
        (r"\frac12", r"\frac12\text{.}"),
        ("5", r"5^\circ C"),
        (r"20^\circ\text{C}", "20 degrees Celsius"),
        (r"3\text{ years}", "3 years old"),
        ("2:30", "2:30 PM"),
        (r"f^{-1}(x)=\frac{x}{2}", r"\frac{x}{2}"),
        (r"\cos\frac{\pi}{3}", "0.5"),
    ],
    "structures": [("12:30", "12:30"), ("3:4", "3 : 4"), ("101_2", "101_{2}"), (r"2E_{16}", "2E_16")],
}

DIFFERENT = {
    "words behind a number": [
        ("5", f"5 {words}")
        for words in (
            "six",
            "wrong",
            "tenths",
            "sixths",
            "halves",
            "negative",
            "factorial",
            "squared",
            "cubed",
            "fewer",
            "doubled",
            "dozens",
            "millions",
            "quadrillion",
            "point two",
            "divided by seven",
            "mod seven",
            "base seven",
            "per six",
            "versus six",
            "forty-two",
            "inverse",
            "reciprocal",
            "too low",
        )
    ],
    "names that deny": [("5", r"\text{not}=5"), ("5", r"\text{wrong}=5")],
    "nearly the same": [
        ("1", r"\tanh 100"),
        (r"\sqrt{10^{80}+1}", "10^{40}"),
        (r"\sqrt[3]{10^{90}+1}", "10^{30}"),
        (r"\ln(1+10^{-300})", "10^{-300}"),
        (r"\cos(10^{-100})", "1"),
        (r"\sin(10^{-100})", "10^{-100}"),
        ("0.5", r"\sin 30^\circ+10^{-40}"),
        ("x<1", "x<1+10^{-40}"),
        ("x+y=1", "x+y=1+10^{-40}"),
        ("x^2<4", "-2<x<2+10^{-40}"),
        (r"(-\infty,1)\cup(2,3)", r"(-\infty,1+10^{-40})\cup(2,3)"),
    ],
    "the same at many points": [
        ("x", r"x+\sin(997\pi x)"),
        ("x", r"\max(x,-100)"),
        ("x", "|x+100|-100"),
        ("x", r"\sqrt{(x+100)^2}-100"),
        ("x", r"x+\lfloor |x|/1000\rfloor"),
    ],
    "repeated items": [("1,1,2", "1,2,2"), ("1,1,2", "1,2"), ("1,1,2", "1,1,2,2")],
    "order of names": [("(1,2)", "y=1,x=2")],
    "whole numbers only": [(r"\{x\in\mathbb{Z}\mid 0<x<5\}", "(0,5)")],
    "times of day": [("7:00 PM", "7:00 AM")],
    "missing": [("nan", "nan"), ("NaN", "5")],
    "many choices": [("A", "A) 5, b) 6")],
    "numbers": [("12", "1 2"), ("35", "3, 5"), ("1234", "12,34"), ("10000", "10001"), ("-5", "|5|"), ("4", "4 dozen")],
    "junk": [("5", "@@ ?? 5"), ("5", "about 5"), ("5", "not 5"), ("5", "5 or more"), ("5", "five"), ("5", "lambda: 5")],
    "listing": [
        ("5", "5 or 6"),
        ("5", "5,5"),
        ("5", r"\{4,5\}"),
        ("5", "1=2=3=4=5"),
        ("5", "x=4=5"),
        ("5", "4=5"),
        ("5", "x=y=4"),
        ("1,2", "1,2,3"),
        ("1,2,3", "1,2"),
        ("C", "A, B, C"),
        ("C", "(A) or (C)"),
        ("A", r"\text{A or B}"),
    ],
    "restated": [("5", r"\int_0^5 1 dx"), ("55", r"\sum_{k=1}^{10}k"), ("3", r"\lim_{x\to 3} x")],
    "precision": [
        (r"\pi", "3.1416"),
        (r"\pi", r"\frac{22}{7}"),
        (r"\frac13", "0.3333334"),
        ("1", "0.99999999"),
        ("12345678", "12345678.4"),
        ("1e-7", "2e-7"),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
        (r"10^{100}+\sqrt2", r"10^{100}+\sqrt3"),
        (r"\sqrt2\cdot10^{-100}", r"\sqrt3\cdot10^{-100}"),
        (r"e^{\pi\sqrt{163}}", "262537412640768744"),
        (r"10^{10^{10}}", r"10^{10^{10}}+1"),
    ],
    "undefined": [(r"\frac00", r"\frac00"), ("1", r"\frac{0}{0}"), (r"\infty", r"-\infty"), ("0^0", "0^0")],
    "percent": [("0.5", "50"), ("5", r"5\%"), ("5", r"500\%"), (r"50\%", "500"), (r"50\%", "5")],
    "units": [
        ("10 m", "10 cm"),
        (r"10\text{ cm}^2", r"10\text{ cm}^3"),
        (r"\$5", r"5\text{ euros}"),
        ("5 apples", "5 oranges"),
        (r"10\text{ m}", "11"),
    ],
    "tuples": [
        ("(1,2)", "(2,1)"),
        ("(1,2)", r"\{1,2\}"),
        ("(1,2)", "1,2"),
        ("(1,2)", "[1,2]"),
        ("(1,2)", "(1,2,2)"),
        ("x=1,y=2", "(2,1)"),
        ("x=1,y=2", "x=2,y=1"),
        ("x=1,2", "y=1,2"),
    ],
    "matrices": [
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", "(1,2)"),
        (r"\begin{vmatrix}1\end{vmatrix}", r"\begin{pmatrix}1\end{pmatrix}"),
    ],
    "relations": [
        ("x=3", "y=3"),
        ("f(1)=3", "f(2)=3"),
        ("0", "x^2-4=0"),
        ("x^2+y^2=4", "4"),
        ("x<3", r"x\le3"),
        ("x<3", "x>3"),
        ("x<3", "y<3"),
        ("[1,2]", r"1\le x<2"),
        ("(2,2)", "2<x<2"),
        ("a<b", "b<a"),
        ("x^2<4", "(-2,3)"),
        ("x^2<4", "x^2<5"),
        (r"\frac1x\ge 0", r"x\ge0"),
        ("(1,3)", r"(1,2)\cup(2,3)"),
        ("y=2x+1", "y=2x-1"),
    ],
    "expressions": [
        ("x", "y"),
        (r"\sqrt{x^2}", "x"),
        ("ab", "a+b"),
        ("i", "-i"),
        (r"\sin x", r"\cos x"),
        (r"3\frac12", r"\frac{3}{2}"),
        (r"-2\frac13", r"-\frac53"),
        ("-4", "(-2)^2"),
    ],
    "signs": [("3", r"\pm 3"), (r"\pm 3", "3")],
    "text": [(r"\text{north}", "thorn"), ("no", "on"), (r"\Delta", r"\delta"), ("yes", "no"), ("5", r"\text{}")],
    "structures": [("101_2", "101_3"), ("101_2", "5"), ("2:3", "3:2"), ("12:00", "1:00")],
}


def _rows(tables):
    return [pytest.param(*pair, id=f"{name}: {pair[0]} | {pair[1]}") for name, rows in tables.items() for pair in rows]


@pytest.mark.parametrize(("gold", "answer"), _rows(EQUAL))
def test_equal(gold, answer):
    verdict = check(gold, answer)
    assert (verdict.equal, verdict.reason) == (True, "match"), verdict


@pytest.mark.parametrize(("gold", "answer"), _rows(DIFFERENT))
def test_different(gold, answer):
    assert not verify(gold, answer)


@pytest.mark.parametrize(
    ("option", "gold", "answer", "with_option"),
    [
        ({"decimal_digits": 3}, r"\pi", "3.14", True),
        ({"percent_as_number": False}, r"50\%", "50", False),
        ({"inequality_as_interval": False}, "(1,3)", "1<x<3", False),
        ({"require_unit": True}, "10 cm", "10", False),
        ({"decimal_comma": True}, "1,22", "1.22", True),
        ({"decimal_comma": True}, "0,111", "0.111", True),
    ],
)
def test_policy_changes_the_verdict(option, gold, answer, with_option):
    assert verify(gold, answer) is not with_option
    assert verify(gold, answer, policy=Policy(**option)) is with_option


def test_policy_without_digits_is_an_error():
    with pytest.raises(ValueError, match="decimal_digits=0"):
        Policy(decimal_digits=0)


@pytest.mark.parametrize(
    ("gold", "answer", "reason"),
    [
        ("5", "5", "match"),
        ("5", "6", "mismatch"),
        ("5", None, "no_answer"),
        ("5", " ", "no_answer"),
        ("5", r"\boxed{}", "no_answer"),
        ("5", "x" * 5000, "mismatch"),
        ("", "5", "unparsable_gold"),
        ("@@ ??", "5", "unparsable_gold"),
        (r"\frac{1}{", "5", "unparsable_gold"),
        ("x" * 5000, "5", "unparsable_gold"),
        (None, "5", "unparsable_gold"),
    ],
)
def test_reasons(gold, answer, reason):
    assert check(gold, answer).reason == reason


def test_verdicts_show_the_parsed_forms_and_the_rule():
    verdict = check("x^2<4", "(-2,2)")
    assert (str(verdict.gold), str(verdict.answer)) == ("(rel < (pow x 2) 4)", "(seq ( ) -2 2)")
    assert verdict.rule == "solution sets"


def test_an_answer_that_is_no_text_is_an_error():
    with pytest.raises(TypeError, match="not int"):
        check("5", 5)
