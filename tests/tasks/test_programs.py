"""Riddles whose answer is a small program."""

import random
import re

import pytest

from r1lab.tasks.programs import HIDDEN_ARGUMENTS, MAX_SLOPE, Program, Riddle, draw_riddle
from r1lab.tasks.tokenizer import build_tokenizer
from r1lab.trace import parse_attempts
from rewards import code_reward


def run(source, x):
    namespace = {}
    exec(source, namespace)
    return namespace["f"](x)


@pytest.mark.parametrize(
    ("program", "source"),
    [
        (Program(3, 1), "def f ( x ) : return x * 3 + 1"),
        (Program(3, -4), "def f ( x ) : return x * 3 - 4"),
        (Program(1, 5), "def f ( x ) : return x + 5"),
        (Program(7, 0), "def f ( x ) : return x * 7"),
    ],
)
def test_a_program_is_python(program, source):
    assert program.source == source
    assert [run(source, x) for x in range(5)] == [program(x) for x in range(5)]


@pytest.mark.parametrize("num_operations", [1, 2])
def test_two_examples_leave_one_candidate(num_operations):
    rng = random.Random(num_operations)
    for _ in range(500):
        riddle = draw_riddle(rng, num_operations, "train")
        program = riddle.solution
        assert (program.slope != 1) + (program.offset != 0) == num_operations
        candidates = riddle.candidates()
        assert [one.slope for one in candidates] == sorted(one.slope for one in candidates)
        assert {one(riddle.arguments[0]) for one in candidates} == {riddle.examples[0][1]}
        assert [one for one in candidates if riddle.miss(one) == 0] == [program]
        assert all(1 <= one.slope <= MAX_SLOPE for one in candidates)


def test_an_attempt_fits_one_example_and_is_checked_on_the_other():
    riddle = Riddle(Program(3, 1), (2, 5))
    assert riddle.prompt == "User : write f ( 2 ) = 7 and f ( 5 ) = 16 . Assistant :"
    assert riddle.write_attempt(Program(3, 1)) == "2 * 3 = 6 , 7 - 6 = 1 : 5 * 3 = 15 , 15 + 1 = 16 off 0 ."
    assert riddle.write_attempt(Program(4, -1)) == "2 * 4 = 8 , 8 - 7 = 1 : 5 * 4 = 20 , 20 - 1 = 19 off 3 ."
    assert riddle.write_attempt(Program(1, 5)) == "7 - 2 = 5 : 5 + 5 = 10 off 6 ."
    assert Riddle(Program(3, 0), (2, 5)).write_attempt(Program(3, 0)) == "2 * 3 = 6 : 5 * 3 = 15 off 0 ."


def test_attempts_are_worked_out_correctly_in_tokens_of_the_vocabulary():
    vocabulary = build_tokenizer().get_vocab()
    rng = random.Random(3)
    for _ in range(200):
        riddle = draw_riddle(rng, 2, "train")
        for program in riddle.candidates():
            text = riddle.write_attempt(program)
            (attempt,) = parse_attempts(text)
            assert attempt.off == riddle.miss(program) and attempt.value == program(riddle.arguments[1])
            assert set(f"{riddle.prompt} {text} {program.source}".split()) <= set(vocabulary)


def test_the_reward_runs_a_program_on_arguments_that_were_not_shown():
    riddle = Riddle(Program(3, 1), (2, 5))
    assert [test["args"] for test in riddle.tests] == [[2], [5], *([x] for x in HIDDEN_ARGUMENTS)]
    right = f"<think> yes </think> <answer> {riddle.solution.source} </answer>"
    table = right.replace("x * 3 + 1", "{ 2 : 7 , 5 : 16 } [ x ]")  # knows the two examples only
    texts = [right, table, right.replace("3 + 1", "3"), right.replace("</answer>", ""), riddle.solution.source]
    assert code_reward(completions=texts, tests=[riddle.tests] * 5) == [1.0, 0.0, 0.0, 0.0, 1.0]


def test_splits_do_not_overlap_and_do_not_know_the_order_of_the_examples():
    rng = random.Random(4)
    for split in ("train", "test"):
        for _ in range(200):
            riddle = draw_riddle(rng, rng.choice((1, 2)), split)
            assert riddle.split == split == Riddle(riddle.solution, riddle.arguments[::-1]).split


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_operations=3; use 1 or 2"):
        draw_riddle(random.Random(0), 3, "train")
    with pytest.raises(ValueError, match=re.escape("unknown split 'dev'; use 'train' or 'test'")):
        draw_riddle(random.Random(0), 1, "dev")
