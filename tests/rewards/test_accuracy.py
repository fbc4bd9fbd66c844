import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import accuracy_reward
from rewards.math import parse_number, verify

NUMBERS = [
    ("5", 5),
    ("-5", -5),
    ("+5", 5),
    ("−5", -5),
    ("007", 7),
    ("0.50", Fraction(1, 2)),
    (".5", Fraction(1, 2)),
    ("5.", 5),
    ("-.5", Fraction(-1, 2)),
    ("1,234", 1234),
    ("1,234,567.5", Fraction(2469135, 2)),
    ("1{,}234", 1234),
    (r"1\,234", 1234),
    (r"1,\!234", 1234),
    ("$5", 5),
    (r"\$1,000", 1000),
    ("-$5", -5),
    ("3/4", Fraction(3, 4)),
    ("-3/4", Fraction(-3, 4)),
    ("3/-4", Fraction(-3, 4)),
    ("3 / 4", Fraction(3, 4)),
    ("1.5/3", Fraction(1, 2)),
    (r"\frac{3}{4}", Fraction(3, 4)),
    (r"\dfrac{-3}{4}", Fraction(-3, 4)),
    (r"-\frac34", Fraction(-3, 4)),
    (r"\tfrac 3 4", Fraction(3, 4)),
    ("3 1/2", Fraction(7, 2)),
    (r"-2\frac13", Fraction(-7, 3)),
    ("½", Fraction(1, 2)),
    ("3½", Fraction(7, 2)),
    ("1.2e3", 1200),
    ("1E-2", Fraction(1, 100)),
    (r"1.2 \times 10^{3}", 1200),
    (r"2 \cdot 10^3", 2000),
    ("2*10^-1", Fraction(1, 5)),
]
NOT_NUMBERS = [
    "",
    " ",
    "-",
    ".",
    "12 3",
    "1,23",
    "12,34",
    ",123",
    "1,,234",
    "1.2.3",
    "--5",
    "-+5",
    "1/0",
    r"\frac{1}{0}",
    "3 1/0",
    "1//2",
    "1/2/3",
    "5%",
    r"50\%",
    "5 cm",
    "5x",
    "x",
    "1e",
    "1e99999",
    "1e-99999",
    "1e999999999999",
    "٣",
    "５",
    "²",
    "5²",
    "1_000",
    "0x10",
    "inf",
    "nan",
    "infinity",
    "(3, 4)",
    "3 - 1/2",
    "1+1",
    "2^3",
    r"\frac{a}{2}",
    "9" * 4001,
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_numbers(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_not_numbers(text):
    assert parse_number(text) is None


@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_fractions_in_every_spelling(top, bottom):
    value = Fraction(top, bottom)
    assert parse_number(f"{top}/{bottom}") == parse_number(rf"\frac{{{top}}}{{{bottom}}}") == value
    assert parse_number(f"{top:,}") == parse_number(f"{top:,}".replace(",", "{,}")) == top
    whole, rest = divmod(abs(value), 1)
    sign = "-" if value < 0 else ""
    assert parse_number(f"{sign}{whole} {rest.numerator}/{rest.denominator}") == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_decimals(decimal):
    assert parse_number(str(decimal)) == Fraction(decimal)


PIECES = [
    *"0123456789+-*/.,()[]{}$%=^\\ x\n<>#½−٣²é\u200b",
    r"\frac",
    r"\boxed{",
    r"\text{",
    r"\times 10^",
    r"\left(",
    r"\,",
    "{,}",
    "####",
    "<answer>",
    "</answer>",
    "</think>",
]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_no_text_raises(text):
    parse_number(text)
    assert isinstance(verify(text, text), bool)
    assert accuracy_reward(completions=[f"<answer>{text}</answer>"], answer=["5"])[0] in (0.0, 1.0)


EQUAL = [
    ("5", "5.0"),
    ("0.5", "1/2"),
    ("1,234", "1234"),
    ("72", "$72"),
    ("72", "72."),
    ("5", "$5$"),
    ("5", r"\(5\)"),
    ("5", "x = 5"),
    ("x=5", "5"),
    ("x = 5", "x=5.0"),
    ("#### 72", "72"),
    ("a + b\n#### 1,200", "1200"),
    (r"so \boxed{\frac12}.", "0.5"),
    (r"\text{Monday}", "monday"),
    ("(A)", "A"),
    ("B", "(b)"),
    (r"3\sqrt{2}", r"3 \sqrt{2}"),
    (r"\left(3, 4\right)", "(3,4)"),
    (r"\dfrac{x}{2}", r"\frac{x}{2}"),
    ("50%", r"50\%"),
    ("New York", "new  york"),
    (r"10^{10^{10}}", r"10^{10^{10}}"),
    ("-1/2", r"-\frac{1}{2}"),
]
DIFFERENT = [
    ("5", "5.0001"),
    ("1/3", "0.33"),
    ("12", "1 2"),
    ("1 2", "12"),
    ("5", "4, 5"),
    ("5", "4 or 5"),
    ("5", "x=4=5"),
    ("5", "4=5"),
    ("x=3", "y=3"),
    ("5", "500%"),
    ("0.05", "5"),
    ("0.0000001", "0.0000002"),
    ("(3, 4)", "4"),
    ("(3,4)", "3"),
    (r"2\pi", "2"),
    (r"3\sqrt{2}", "3"),
    (r"\Delta", r"\delta"),
    ("5", ""),
    ("", ""),
    ("", "5"),
    ("5", "the answer is 5"),
    ("5", "5; 5"),
    ("1e99999", "1e99998"),
    ("5", "$4$ and $5$"),
    (r"\boxed{5", "5"),
    ("10 m", "10 cm"),
    ("5", "٥"),
    ("1/2004!", "1/2006!"),
    ("5", "5\u200b5"),
]


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal(gold, answer):
    assert verify(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different(gold, answer):
    assert not verify(gold, answer)


@pytest.mark.parametrize("timeout_s", [0, -1])
def test_timeout_must_be_positive(timeout_s):
    assert verify("5", "5", timeout_s=1)
    with pytest.raises(ValueError, match="timeout_s"):
        verify("5", "5", timeout_s=timeout_s)


@pytest.mark.parametrize(
    "answer",
    [
        "9" * 1_000_000,
        "1" + ",000" * 250_000,
        r"\frac{" * 160_000,
        r"\text{" * 160_000,
        " " * 1_000_000,
        "$" * 1_000_000,
        "9" * 4000,
        "1" + ",000" * 999,
        r"\frac{" * 600,
        "1 " * 2000,
        "$" * 4000,
        "-" * 4000,
        "x=" * 2000,
        "1e999999999",
        r"9^{9^{9^{9}}}",
        "(10**9)!",
        "__import__('os').system('true')",
    ],
    ids=lambda answer: answer[:12],
)
def test_hostile_answers_are_wrong_quickly(answer):
    begin = time.process_time()
    assert not verify("5", answer)
    assert time.process_time() - begin < 1


def test_gsm8k():
    solution = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 altogether.\n#### 72"
    completions = [
        "<think>48 + 24</think> <answer>72</answer>",
        "<think>72</think> <answer>24</answer>",
        "#### 72",
        "72",
    ]
    expected = [1.0, 0.0, 1.0, 0.0]
    for gold in (solution, "72", 72, 72.0):
        assert accuracy_reward(completions=completions, answer=[gold] * 4) == expected
        assert accuracy_reward(completions=completions, solution=[gold] * 4, level=[1] * 4) == expected


def test_unusable_golds_are_not_applicable():
    golds = [None, "", " ", float("nan"), True, ["5"], r"\boxed{5", "####"]
    assert accuracy_reward(completions=["<answer>5</answer>"] * len(golds), solution=golds) == [None] * len(golds)


def test_first_gold_column_wins():
    columns = {"target": ["1"], "answer": ["2"], "solution": ["3"]}
    assert accuracy_reward(completions=["#### 3"], **columns) == [1.0]
    assert accuracy_reward(completions=["#### 2"], **columns | {"solution": None}) == [1.0]


def test_answer_mode():
    text = r"<answer>4</answer> \boxed{5}"
    assert accuracy_reward(completions=[text], answer=["5"], answer_mode="boxed") == [1.0]
    assert accuracy_reward(completions=[text], answer=["5"]) == [0.0]


def test_reasons_are_logged_row_by_row_and_as_shares():
    columns, shares = {}, {}
    completions = ["<answer>5</answer>", "<answer>6</answer>", "I do not know", "<answer>5</answer>"]
    scores = accuracy_reward(
        completions=completions,
        solution=["5", "5", "5", None],
        log_extra=columns.__setitem__,
        log_metric=shares.__setitem__,
    )
    assert scores == [1.0, 0.0, 0.0, None]
    assert columns["accuracy_reason"] == ["match", "mismatch", "no_answer", "unparsable_gold"]
    assert len(columns["accuracy_rule"]) == 4 and columns["accuracy_rule"][0]
    assert shares["accuracy/match"] == shares["accuracy/unparsable_gold"] == 0.25
    assert sum(shares.values()) == 1.0
