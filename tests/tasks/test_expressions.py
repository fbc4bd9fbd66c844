import random

import pytest

from r1lab.tasks.expressions import (
    MAX_VALUE,
    ForbiddenStepError,
    combine,
    distance,
    evaluate,
    random_expression,
    render,
    work_out,
)


@pytest.mark.parametrize(
    ("op", "left", "right", "value"),
    [("+", 3, 5, 8), ("-", 5, 3, 2), ("-", 3, 5, None), ("-", 3, 3, None), ("*", 7, 8, 56), ("*", 11, 10, None),
     ("/", 8, 4, 2), ("/", 8, 3, None), ("/", 3, 8, None)],
)  # fmt: skip
def test_combine_keeps_the_rules_of_the_game(op, left, right, value):
    assert combine(op, left, right) == value


def test_work_out_takes_one_operation_after_the_other():
    assert work_out(("-", ("*", ("+", 3, 5), 7), 2)) == "3 + 5 = 8 , 8 * 7 = 56 , 56 - 2 = 54"
    assert work_out(("+", ("*", 2, 3), ("-", 9, 4))) == "2 * 3 = 6 , 9 - 4 = 5 , 6 + 5 = 11"
    assert work_out(7) == "7"


def test_random_expressions_use_each_number_once_and_every_line_is_true():
    rng = random.Random(0)
    for _ in range(300):
        numbers = [rng.randint(1, 12) for _ in range(rng.randint(2, 5))]
        expression = random_expression(rng, numbers)
        text = render(expression)
        assert sorted(int(token) for token in text.split() if token.isdigit()) == sorted(numbers)
        assert 1 <= evaluate(expression) <= MAX_VALUE
        steps = work_out(expression).split(" , ")
        assert len(steps) == len(numbers) - 1
        for step in steps:
            left, op, right, _, value = step.split()
            assert combine(op, int(left), int(right)) == int(value)
        assert int(value) == evaluate(expression)


def test_evaluate_refuses_a_forbidden_step():
    with pytest.raises(ValueError, match=r"3 - 5 has a step that is no whole number in 1\.\.100"):
        evaluate(("-", 3, 5))


def test_a_forbidden_step_has_neither_a_working_nor_a_distance():
    forbidden = ("+", ("/", 9, 2), 3)
    with pytest.raises(ForbiddenStepError, match=r"9 / 2 has a step"):
        work_out(forbidden)
    with pytest.raises(ForbiddenStepError):
        distance(forbidden, 7)
    assert distance(("+", ("/", 8, 2), 3), 9) == 2
