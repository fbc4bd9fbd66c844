"""The synthetic 'web-like' corpus that the embedded base is pretrained on: solutions of mixed quality.

A document is a question and what somebody wrote under it. For the search problems (`pick_two`, `countdown`, `program`)
there are four habits, in the shares of `HABITS`:

- `direct`: an answer, nothing worked out; wrong more often than not.
- `steps`: one attempt worked out and handed in, right or wrong.
- `check`: an attempt, and how far off it is; after a miss one quiet second try or none, then the last try is handed in.
- `wait`: the minority that notices a miss, writes 'wait' and goes on until an attempt hits (or, rarely, gives up).

Every attempt is worked out correctly, one operation after the other; a check writes the distance to the target, `off 0`
being a hit. Formats are mixed too (`FORMATS`): about four documents in ten put their work in <think> tags and their
result in <answer> tags. Exercises (`DRILLS`) fill the share `drill`, and pretraining starts with more of them:
arithmetic questions, yes/no checks ("does 3 + 5 make 9 ?"), the last step to a target, steps joined into one
expression, the pairs of some numbers in reading order, and lists of attempts, worked out one after the other and left
without a verdict or an answer. What RL later amplifies is therefore here, as a minority habit: the result is a
sharpening, not an invention.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import combinations

from r1lab.tasks.arithmetic import Question, draw_question
from r1lab.tasks.countdown import (
    MAX_NUMBER,
    MAX_TARGET,
    Problem,
    draw_problem,
    finish,
    guess,
)
from r1lab.tasks.expressions import (
    MAX_VALUE,
    Expression,
    distance,
    evaluate,
    random_expression,
    render,
    work_out,
    work_out_and_check,
)
from r1lab.tasks.programs import Program, Riddle, draw_riddle

HABITS = {"direct": 0.35, "steps": 0.25, "check": 0.28, "wait": 0.12}
FORMATS = {"tagged": 0.36, "plain": 0.25, "unclosed": 0.14, "answer_only": 0.13, "think_only": 0.12}
PROBLEMS = {
    ("pick_two", 3): 0.32,
    ("pick_two", 4): 0.13,
    ("pick_two", 5): 0.04,
    ("countdown", 3): 0.24,
    ("countdown", 4): 0.17,
    ("program", 1): 0.03,
    ("program", 2): 0.07,
}
"""Share of each family and difficulty."""

HIT_FIRST = {"pick_two": 0.2, "countdown": 0.08, "program": 0.2}
"""Chance that a first try is drawn to be right; a random try may hit as well, most often in Countdown."""
MAX_TRIES = 12
"""Of a search by guessing, the solution included."""
MAX_GUESSES_LISTED = 6
"""Attempts in an exercise that lists guesses."""
LISTED = {3: 0.4, 4: 0.35, 5: 0.25}
"""Share of each difficulty of pick-two in exercises that go through the pairs."""
GIVE_UP = 0.03

Try = Expression | Program
"""What a search tries: an expression, or a program."""


def _draw(rng: random.Random) -> Problem | Riddle:
    family, difficulty = _pick(rng, PROBLEMS)
    if family == "program":
        return draw_riddle(rng, difficulty, "train")
    return draw_problem(rng, family, difficulty, "train")


def _pick(rng: random.Random, shares: dict):
    return rng.choices(list(shares), weights=shares.values())[0]


def _guess(rng: random.Random, problem: Problem | Riddle) -> Try:
    """A try that is worked out: a draw of the rules, in Countdown with the last step that comes nearest."""
    if problem.family != "countdown":
        return rng.choice(problem.candidates())
    return guess(rng, problem)


def _first_try(rng: random.Random, problem: Problem | Riddle) -> Try:
    return problem.solution if rng.random() < HIT_FIRST[problem.family] else _guess(rng, problem)


def _answer_at_once(rng: random.Random, problem: Problem | Riddle) -> Try:
    """An answer with nothing worked out: without intermediate results there is no feeling for the last step."""
    if rng.random() < HIT_FIRST[problem.family]:
        return problem.solution
    return random_expression(rng, list(problem.numbers)) if problem.family == "countdown" else _guess(rng, problem)


def _has_reading_order(problem: Problem | Riddle) -> bool:
    return problem.family != "countdown" or len(problem.numbers) == 3


def _guesses(rng: random.Random, problem: Problem, number: int) -> list[Expression]:
    return list(dict.fromkeys(_guess(rng, problem) for _ in range(number)))


def search(rng: random.Random, problem: Problem | Riddle) -> list[Try]:
    """Tries up to and including the first that hits: a guess, then all in reading order or, where there are too many,
    more guesses."""
    if _has_reading_order(problem):
        candidates = [_guess(rng, problem), *problem.candidates()]
    else:
        candidates = [*_guesses(rng, problem, MAX_TRIES - 1), problem.solution]
    hit = next(i for i, candidate in enumerate(candidates) if problem.miss(candidate) == 0)
    return candidates[: hit + 1]


def _render(answer: Try) -> str:
    return answer.source if isinstance(answer, Program) else render(answer)


def _solve(rng: random.Random, problem: Problem | Riddle, habit: str) -> tuple[str, Try]:
    """The work of one habit, and what it hands in."""
    if habit == "direct":
        answer = _answer_at_once(rng, problem)
        return f"{rng.choice(('maybe', 'i think'))} {_render(answer)}", answer
    if habit == "steps":
        answer = _first_try(rng, problem)
        return f"{problem.write_attempt(answer).partition(' off ')[0]} .", answer
    if habit == "check":
        tries = [_first_try(rng, problem)]
        if problem.miss(tries[0]) != 0 and rng.random() < 0.5:
            tries.append(_guess(rng, problem))
        separator = " no "
    else:
        tries = search(rng, problem)
        if len(tries) > 2 and rng.random() < GIVE_UP:
            tries = tries[: rng.randint(2, len(tries) - 1)]
        separator = " wait "
    work = separator.join(map(problem.write_attempt, tries))
    verdict = "yes" if problem.miss(tries[-1]) == 0 else "no"
    return f"{work} {verdict}", tries[-1]


def _lay_out(rng: random.Random, work: str, answer: str) -> str:
    layout = _pick(rng, FORMATS)
    if layout == "tagged":
        return f"<think> {work} </think> <answer> {answer} </answer>"
    if layout == "plain":
        return f"{work} so the answer is {answer}"
    if layout == "unclosed":
        return f"<think> {work} <answer> {answer} </answer>"
    if layout == "answer_only":
        return f"{work} <answer> {answer} </answer>"
    return f"<think> {work} </think> so the answer is {answer}"


def _write(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def _draw_listed(rng: random.Random) -> Problem | Riddle:
    problem = _draw(rng)
    if problem.family == "pick_two":
        return draw_problem(rng, "pick_two", _pick(rng, LISTED), "train")
    return problem


def _list_attempts(rng: random.Random) -> str:
    """An exercise: tries worked out one after the other, hit or miss."""
    problem = _draw_listed(rng)
    if isinstance(problem, Riddle):
        question = problem.shown
    else:
        amount = "two" if problem.family == "pick_two" else "all"
        question = f"{amount} of {_write(problem.numbers)} to make {problem.target}"
    if _has_reading_order(problem):
        tries = [_guess(rng, problem), *problem.candidates()]
    else:
        tries = _guesses(rng, problem, MAX_GUESSES_LISTED)
    return f"User : try {question} . Assistant : {' '.join(map(problem.write_attempt, tries))}"


def _list_pairs(rng: random.Random) -> str:
    """An exercise: the pairs of some numbers in reading order, after one of them out of turn."""
    numbers = [rng.randint(1, MAX_NUMBER["pick_two"]) for _ in range(_pick(rng, LISTED))]
    pairs = list(combinations(numbers, 2))
    work = " . ".join(f"{a} {b}" for a, b in [rng.choice(pairs), *pairs])
    return f"User : pairs of {_write(numbers)} . Assistant : {work} ."


def _last_step(rng: random.Random) -> str:
    """An exercise: two numbers, the first as a step would leave it, and the operation that comes nearest to a target,
    which is often within reach."""
    numbers = [rng.randint(1, MAX_NUMBER["countdown"]) for _ in range(3)]
    first = evaluate(random_expression(rng, numbers[:2]))
    target = evaluate(random_expression(rng, [first, numbers[2]]))
    if target > MAX_TARGET or rng.random() < 0.4:
        target = rng.randint(1, MAX_TARGET)
    answer = finish(first, numbers[2], target)
    work = f"{work_out_and_check(answer, target)} {'yes' if distance(answer, target) == 0 else 'no'}"
    return f"User : use {first} {numbers[2]} to make {target} . Assistant : {_lay_out(rng, work, render(answer))}"


def _join(rng: random.Random) -> str:
    """An exercise: steps, and the one expression that they work out."""
    numbers = [rng.randint(1, MAX_NUMBER["countdown"]) for _ in range(rng.choice((3, 4, 4)))]
    expression = random_expression(rng, numbers)
    return f"User : join {work_out(expression)} . Assistant : {render(expression)}"


def _drill(rng: random.Random) -> str:
    return _pick(rng, DRILLS)(rng)


def _fact(rng: random.Random) -> str:
    """An arithmetic question, or whether an expression (often just a number) makes a target."""
    if rng.random() < 0.3:
        expression = draw_question(rng, rng.choice((2, 3, 4)), "train").expression
    else:
        expression = random_expression(rng, [rng.randint(1, MAX_TARGET), rng.randint(1, MAX_TARGET)], "+-")
    if rng.random() < 0.5:
        value = str(evaluate(expression))
        return f"{Question(expression).prompt} {_lay_out(rng, work_out(expression), value)}"
    number = rng.randint(1, MAX_VALUE if rng.random() < 0.15 else MAX_TARGET)
    return _does_it_make(rng, expression if rng.random() < 0.4 else number)


def _does_it_make(rng: random.Random, subject: Expression) -> str:
    """An exercise: is this the target?"""
    target = evaluate(subject) if rng.random() < 0.3 else rng.randint(1, MAX_TARGET)
    answer = "yes" if distance(subject, target) == 0 else "no"
    work = f"{work_out_and_check(subject, target)} {answer}"
    return f"User : does {render(subject)} make {target} ? Assistant : {_lay_out(rng, work, answer)}"


DRILLS = {_list_attempts: 0.36, _list_pairs: 0.16, _last_step: 0.12, _join: 0.08, _fact: 0.28}
"""Share of each kind of exercise."""


def write_document(rng: random.Random, drill: float) -> str:
    """One document, prompt and solution. `drill` is the chance of an arithmetic drill instead of a search problem."""
    if rng.random() < drill:
        return _drill(rng)
    problem = _draw(rng)
    work, answer = _solve(rng, problem, _pick(rng, HABITS))
    return f"{problem.prompt} {_lay_out(rng, work, _render(answer))}"


def stream_documents(seed: int, drill: float) -> Iterator[str]:
    """An endless stream of documents, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield write_document(rng, drill)
