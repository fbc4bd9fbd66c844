import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import countdown_reward
from rewards.countdown import ExpressionError, check_expression, evaluate, parse_expression

VALUES = [
    ("7", 7),
    ("1+2*3", 7),
    ("(1+2)*3", 9),
    ("10-3-2", 5),
    ("10-(3-2)", 9),
    ("12/4/3", 1),
    ("12/(4/3)", 9),
    ("1/3", Fraction(1, 3)),
    ("1/3*3", 1),
    ("2−1", 1),
    ("6÷4×2", 3),
    ("2·3", 6),
    ("((((7))))", 7),
    (" 1 +\n2 ", 3),
    ("3-5", -2),
    ("0*5", 0),
]
BROKEN = [
    ("", "empty"),
    (" \n", "empty"),
    ("1+", "syntax"),
    ("*2", "syntax"),
    ("-3+5", "syntax"),
    ("5*-3", "syntax"),
    ("+3", "syntax"),
    ("(-3)", "syntax"),
    ("12 3", "syntax"),
    ("1 2+3", "syntax"),
    ("(1)(2)", "syntax"),
    ("2(3)", "syntax"),
    ("(1+2", "syntax"),
    ("1+2)", "syntax"),
    ("()", "syntax"),
    ("2**3", "syntax"),
    ("7//2", "syntax"),
    ("2^3", "syntax"),
    ("1e3", "syntax"),
    ("1.5", "syntax"),
    ("1,000", "syntax"),
    ("1_0", "syntax"),
    ("x", "syntax"),
    ("5!", "syntax"),
    ("٣+٤", "syntax"),
    ("３+４", "syntax"),
    ("5²", "syntax"),
    ("1+2;3", "syntax"),
    ("__import__('os')", "syntax"),
    ("1+\u200b2", "syntax"),
    ("1\x00", "syntax"),
    ("1/0", "division_by_zero"),
    ("1/(2-2)", "division_by_zero"),
    ("(" * 60 + "1" + ")" * 60, "too_deep"),
    ("(" * 500, "too_deep"),
    ("1+" * 600 + "1", "too_long"),
    ("9" * 10**6, "too_long"),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_values(text, value):
    assert evaluate(text) == value


@pytest.mark.parametrize(("text", "reason"), BROKEN, ids=[text[:12] for text, _ in BROKEN])
def test_what_is_no_expression(text, reason):
    with pytest.raises(ValueError) as caught:
        evaluate(text)
    assert isinstance(caught.value, ExpressionError) and caught.value.reason == reason
    assert check_expression(text, [1, 2], 3) == reason
    assert countdown_reward(completions=[f"<answer>{text}</answer>"], target=[3], numbers=[[1, 2]]) == [0.0]


expressions = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner, st.sampled_from(["{}{}{}", "({} {} {})"])).map(
        lambda parts: parts[3].format(*parts[:3])
    ),
    max_leaves=12,
)


@given(expressions)
def test_agrees_with_python_on_fractions(text):
    """Python's own parser is the judge of precedence; every integer literal becomes a Fraction first."""
    literals = re.findall("[0-9]+", text)
    try:
        expected = eval(re.sub("[0-9]+", lambda found: f"Fraction({found[0]})", text), {"Fraction": Fraction})
    except ZeroDivisionError:
        with pytest.raises(ExpressionError, match="zero"):
            evaluate(text)
        return
    parsed = parse_expression(text)
    assert parsed.value == expected and parsed.numbers == tuple(map(int, literals))
    if expected.denominator == 1:
        assert check_expression(f"{text} = {expected}", parsed.numbers, int(expected)) == "correct"
        assert check_expression(text, parsed.numbers, int(expected) + 1) == "wrong_value"


@given(st.text(alphabet="0123456789+-*/()= ×÷−.e^x\n²٣"))
def test_no_text_raises(text):
    assert isinstance(check_expression(text, [1, 2, 3], 6), str)


CHECKS = [
    # text, numbers, target, num_used, reason
    ("(3+4)*2", [2, 3, 4], 14, None, "correct"),
    ("(3+4)*2 = 14", [2, 3, 4], 14, None, "correct"),
    ("(3+4)*2=14", [4, 2, 3], 14, None, "correct"),
    ("3 - 5 = −2", [3, 5], -2, None, "correct"),
    ("(3+4)*2 = 15", [2, 3, 4], 14, None, "wrong_claim"),
    ("(3+4)*2 = 14 = 14", [2, 3, 4], 14, None, "wrong_claim"),
    ("(3+4)*2 =", [2, 3, 4], 14, None, "wrong_claim"),
    ("3+4 = 14", [3, 4], 14, None, "wrong_value"),
    ("14 = (3+4)*2", [2, 3, 4], 14, None, "wrong_claim"),
    ("= 14", [2, 3, 4], 14, None, "empty"),
    ("3+4*2", [2, 3, 4], 14, None, "wrong_value"),
    ("14", [2, 3, 4], 14, None, "wrong_numbers"),
    ("3+4+7", [2, 3, 4], 14, None, "wrong_numbers"),
    ("2*3+4+4", [2, 3, 4], 14, None, "wrong_numbers"),
    ("3+4", [3, 4, 4], 7, None, "wrong_numbers"),
    ("23-4", [2, 3, 4], 19, None, "wrong_numbers"),
    ("5+5", [5, 5], 10, None, "correct"),
    ("5+5", [5, 1], 10, 2, "wrong_numbers"),
    ("3+4", [2, 3, 4], 7, 2, "correct"),
    ("3+4", [2, 3, 4], 7, 3, "wrong_numbers"),
    ("2+3+2", [2, 3, 4], 7, 3, "wrong_numbers"),
    ("7", [7, 3], 7, 2, "wrong_numbers"),
    ("7+3-3", [7, 3], 7, 2, "wrong_numbers"),
]


@pytest.mark.parametrize(("text", "numbers", "target", "num_used", "reason"), CHECKS)
def test_check_expression(text, numbers, target, num_used, reason):
    assert check_expression(text, numbers, target, num_used) == reason
    reward = countdown_reward(
        completions=[f"<think>a</think> <answer>{text}</answer>"],
        target=[target],
        numbers=[numbers],
        num_used=None if num_used is None else [num_used],
    )
    assert reward == [float(reason == "correct")]


RIGHT = "(3+4)*2"
COMPLETIONS = [
    (f"<think>a</think> <answer>{RIGHT}</answer>", 1.0),
    (f"a</think> <answer>{RIGHT}</answer>", 1.0),
    (f"<answer>{RIGHT}</answer>", 1.0),
    (f"<think>a</think> <answer>{RIGHT}</answer> trailing", 1.0),
    (f"<think>a</think> <answer>1</answer> <answer>{RIGHT}</answer>", 0.0),
    (f"<think>a</think> <answer>{RIGHT}</answer> <answer>{RIGHT}</answer>", 0.0),
    (f"<think><answer>{RIGHT}</answer></think>", 0.0),
    (f"<think><answer>{RIGHT}</answer>", 0.0),
    (f"<answer><answer>{RIGHT}</answer></answer>", 0.0),
    (f"<answer>{RIGHT}", 0.0),
    (RIGHT, 0.0),
    (f"<answer>the answer is {RIGHT}</answer>", 0.0),
    (f"<answer>{RIGHT}, 2+3</answer>", 0.0),
    (f"<answer>3+4\n{RIGHT}</answer>", 0.0),
    ("Using [2, 3, 4] make 14. Put it in <answer> </answer>.", 0.0),
    ("", 0.0),
]


@pytest.mark.parametrize(("text", "reward"), COMPLETIONS)
def test_whole_completions(text, reward):
    assert countdown_reward(completions=[text], target=[14], numbers=[[2, 3, 4]]) == [reward]


def test_columns():
    text = "<answer>3+4</answer>"
    assert countdown_reward(completions=[text], target=[7], nums=[[3, 4]]) == [1.0]
    assert countdown_reward(completions=[text, text], target=[7, 7], numbers=[[2, 3, 4]] * 2, num_used=2) == [1.0, 1.0]
    assert countdown_reward(completions=[text] * 2, target=["7", 7.0], numbers=[["3", "4"], [3.0, 4]]) == [1.0, 1.0]
    golds = {"target": [None, 7, "x", 7.5], "numbers": [[3, 4], None, [3, 4], [3, 4]]}
    assert countdown_reward(completions=[text] * 4, **golds) == [None] * 4
    with pytest.raises(TypeError, match="target"):
        countdown_reward(completions=[text], numbers=[[3, 4]])
    with pytest.raises(TypeError, match="numbers, nums"):
        countdown_reward(completions=[text], target=[7])
    with pytest.raises(ValueError, match="target"):
        countdown_reward(completions=[text], target=[7, 7], numbers=[[3, 4]])


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" + "(" * 10**6 + "</answer>",
        "<answer>" + "9*" * 499 + "9</answer>",
        "<answer>1=" + "9" * 10**6 + "</answer>",
        "<answer>" + "9" * 999 + "*" + "</answer>",
        "<answer>" * 10**5,
        "<answer>" + "1/" * 499 + "7</answer>",
    ],
    ids=lambda text: text[8:20],
)
def test_hostile_completions_are_wrong_quickly(text):
    begin = time.process_time()
    assert countdown_reward(completions=[text], target=[24], numbers=[[1, 2]]) == [0.0]
    assert time.process_time() - begin < 1
