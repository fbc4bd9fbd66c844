"""What recipes/probe.py reads off a completion."""

import pytest
from probe import game_value, probe_text

from rewards.countdown import ExpressionError

COLUMNS = {"numbers": [9, 2, 3], "target": 7, "num_used": None}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9 - 2", 7),
        ("( 9 - 2 ) * 3", 21),
        ("9 - 2 * 3", 3),
        ("9 ÷ 3 × 02", 6),
        ("( 9 / 2 ) * 2", None),  # a whole number in the end, by a forbidden step
        ("( 2 - 9 ) + 8", None),
        ("9 / 0", None),
        ("99 * 99", None),
    ],
)
def test_game_value(text, value):
    assert game_value(text) == value


@pytest.mark.parametrize("text", ["", "9 +", "-9", "9 9", "( 9", "9 ** 2", "9 + x", "1 + " * 900 + "1", "(" * 99])
def test_no_expression(text):
    with pytest.raises(ExpressionError):
        game_value(text)


def test_skills_of_a_search():
    work = "9 / 2 = 4 , 4 + 3 = 7 off 0 . wait 9 - 2 = 7 , 7 * 3 = 21 off 14 . no"
    text = f"{work} </think> <answer> 3 * ( 9 - 2 ) </answer>"
    shown = probe_text(text, COLUMNS)
    assert shown == {
        "arithmetic": [True],
        "distance": [True, True],
        "legal": [False, True],
        "yes_on_hit": [False],
        "yes_on_miss": [False],
        "copy": [True],
        "given": [True, True],
    }


def test_skills_that_are_missing():
    shown = probe_text("9 - 2 = 4 off 3 . yes 9 - 2 = 7 off 1 . yes <answer> 9 - 3 </answer>", COLUMNS)
    assert shown["legal"] == [True, True] and shown["arithmetic"] == [False, True]
    assert shown["yes_on_miss"] == [True, True] and shown["distance"] == [True, False] and shown["copy"] == [False]
    assert shown["given"] == [False, False]  # not all of the numbers


@pytest.mark.parametrize(("answer", "is_copy"), [("9 - 2", True), ("5 + 2", False), ("2 + 9", False), ("9 -", False)])
def test_an_answer_is_copied_from_the_last_attempt(answer, is_copy):
    assert probe_text(f"9 - 2 = 7 off 0 . yes <answer> {answer} </answer>", COLUMNS)["copy"] == [is_copy]
