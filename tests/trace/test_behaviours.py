"""Verification, backtracking, enumeration and subgoals, by rule."""

import random

import pytest

from r1lab.tasks.countdown import draw_problem, scan_pairs
from r1lab.tasks.expressions import distance, work_out
from r1lab.trace import find_behaviours, given_numbers


def shown(text, numbers=None):
    return {name for name, holds in find_behaviours(text, numbers)._asdict().items() if holds}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", set()),
        ("wait, let me verify and go back", set()),  # words alone are no behaviour
        ("3 + 5 = 8", set()),
        ("3 + 5 = 8 off 2", {"verification"}),
        ("3 + 5 = 8 off 0 . 3 - 5 = 2 off 6", {"verification"}),  # a hit: nothing was abandoned
        ("3 + 5 = 8 off 2 . 7 + 3 = 10 off 0", {"verification", "backtracking"}),
        ("3 + 5 = 8 off 2 . 3 + 5 = 8 off 2", {"verification"}),  # the same try again
        ("3 + 5 = 8 , 8 * 7 = 56 off 2 . 3 - 5 = 2 , 2 * 7 = 14 off 0", {"verification", "backtracking", "subgoals"}),
        ("16 - 7 = 9 , 9 * 2 = 18", {"subgoals"}),
        ("16 - 7 = 9 . So 9 * 2 = 18. Check: 18 / 2 = 9", {"subgoals", "verification"}),
        ("12 + 30 = 42 , check 42 - 30 = 12", {"subgoals", "verification"}),
        ("12 - 5 = 7 , and 7 + 5 = 12", {"subgoals", "verification"}),
        ("12 + 30 = 42 , check 42 - 30 = 13", {"subgoals"}),  # undone wrongly
        ("3 * 4 = 12 and once more 3*4 = 12", {"verification"}),
        ("3 * 4 = 12 and 4 * 3 = 12", set()),
        ("1.5 * 4 = 6.0 , 6 + 1 = 7", {"subgoals"}),
        ("1 / 0 = 5 off 1", {"verification"}),
    ],
)
def test_behaviours(text, expected):
    assert shown(text) == expected


def test_a_given_number_is_no_subgoal():
    text = "3 + 5 = 8 , 8 * 7 = 56"
    assert shown(text) == {"subgoals"} and shown(text, ["3", "5", "7"]) == {"subgoals"}
    assert shown(text, ["3", "5", "8", "7"]) == set()


def tries(*expressions):
    return " . ".join(f"{expression} = 1 off 5" for expression in expressions)


@pytest.mark.parametrize(
    "expressions, expected",
    [
        (["14 + 6", "14 - 6", "14 + 13", "14 - 13"], True),
        (["14 + 6", "14 + 13", "14 + 19", "6 + 13"], True),
        (["6 + 14", "14 - 6", "13 + 14", "6 - 19"], True),  # whatever the order within a pair
        (["6 + 13", "14 + 6", "14 + 13", "14 + 19", "6 + 13"], True),  # a guess first
        (["14 + 6", "14 + 6", "14 + 13", "14 - 13"], False),  # a try repeated
        (["14 + 6", "14 + 13", "14 - 6", "14 - 13"], False),
        (["14 + 6", "14 - 6", "14 + 13"], False),  # too few
        (["14 + 6", "14 - 6", "14 + 99", "14 + 19", "6 + 13"], False),  # not given
        (["14 + 6 = 20 , 20 * 13", "14 - 6 = 8 , 8 * 13", "14 * 6 = 84 , 84 - 13", "13 + 14 = 27 , 27 * 6"], True),
        (["( 14 + 6 ) * 13", "( 14 - 6 ) * 13", "13 * ( 14 * 6 )", "( 13 + 14 ) / 6"], True),
    ],
)
def test_enumeration(expressions, expected):
    assert ("enumeration" in shown(tries(*expressions), ["14", "6", "13", "19"])) is expected


def test_enumeration_with_a_number_given_twice():
    numbers = ["1", "1", "15", "12"]
    assert "enumeration" in shown(tries("1 + 1", "1 + 15", "15 - 1", "1 + 12"), numbers)
    assert "enumeration" not in shown(tries("15 + 15", "1 + 15", "15 - 1", "1 + 12"), numbers)


def test_a_scan_shows_enumeration_and_a_shuffle_hardly_does():
    rng = random.Random(0)
    scanned = shuffled = 0
    for _ in range(300):
        problem = draw_problem(rng, "pick_two", 4, "train")
        candidates = scan_pairs(problem.numbers)[:6]
        numbers = given_numbers(problem.prompt)
        for is_shuffled in (False, True):
            rng.shuffle(candidates) if is_shuffled else None
            text = " . wait ".join(f"{work_out(one)} off {distance(one, problem.target)}" for one in candidates)
            found = find_behaviours(text, numbers).enumeration
            shuffled += found and is_shuffled
            scanned += found and not is_shuffled
    assert scanned > 290
    assert shuffled < 0.12 * 300  # three rows of four, 1/24 each


def test_given_numbers():
    assert given_numbers("User : pick two of 1 1 15 12 to make 2 . Assistant :") == ["1", "1", "15", "12"]
    assert given_numbers("Using the numbers [3, 5, 7], create an equation that equals 24.") == ["3", "5", "7"]
    assert given_numbers("what is 3 + 4 ?") is None
