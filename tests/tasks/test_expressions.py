import random

import pytest

from r1lab.tasks.expressions import (
    MAX_VALUE,
    combine,
    distance,
    evaluate,
    random_expression,
    random_slip,
    render,
    work_out,
)
from rewards.countdown import evaluate as evaluate_text


@pytest.mark.parametrize(
    ("op", "left", "right", "value"),
    [("+", 3, 5, 8), ("-", 5, 3, 2), ("-", 3, 5, None), ("-", 3, 3, None), ("*", 7, 8, 56), ("*", 11, 10, None),
     ("/", 8, 4, 2), ("/", 8, 3, None), ("/", 3, 8, None)],
)  # fmt: skip
def test_combine_keeps_the_rules_of_the_game(op, left, right, value):
    assert combine(op, left, right) == value


def test_work_out_reduces_the_leftmost_innermost_operation_first():
    assert work_out(("-", ("*", ("+", 3, 5), 7), 2)) == "( ( 3 + 5 ) * 7 ) - 2 = ( 8 * 7 ) - 2 = 56 - 2 = 54"
    assert work_out(("+", ("*", 2, 3), ("-", 9, 4))) == "( 2 * 3 ) + ( 9 - 4 ) = 6 + ( 9 - 4 ) = 6 + 5 = 11"


def test_random_expressions_use_each_number_once_and_every_line_is_true():
    rng = random.Random(0)
    for _ in range(300):
        numbers = [rng.randint(1, 12) for _ in range(rng.randint(2, 5))]
        expression = random_expression(rng, numbers)
        text = render(expression)
        assert sorted(int(token) for token in text.split() if token.isdigit()) == sorted(numbers)
        assert 1 <= evaluate(expression) <= MAX_VALUE
        assert {evaluate_text(side) for side in work_out(expression).split(" = ")} == {evaluate(expression)}


def test_evaluate_refuses_a_forbidden_step():
    with pytest.raises(ValueError, match=r"3 - 5 has a step that is no whole number in 1\.\.100"):
        evaluate(("-", 3, 5))


def test_working_out_stops_at_a_forbidden_step():
    assert work_out(("+", ("/", 9, 2), 3)) == "( 9 / 2 ) + 3 = fails"
    assert work_out(("*", ("+", 3, 4), ("-", 3, 3))) == "( 3 + 4 ) * ( 3 - 3 ) = 7 * ( 3 - 3 ) = fails"
    assert distance(("+", ("/", 9, 2), 3), 7) is None
    assert distance(("+", ("/", 8, 2), 3), 9) == 2


def test_slips_use_each_number_once_and_fail():
    rng = random.Random(0)
    for _ in range(300):
        numbers = [rng.randint(1, 12) for _ in range(rng.randint(2, 4))]
        slip = random_slip(rng, numbers)
        assert sorted(int(token) for token in render(slip).split() if token.isdigit()) == sorted(numbers)
        assert distance(slip, 1) is None and work_out(slip).endswith("= fails")
