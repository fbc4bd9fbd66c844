"""The synthetic 'web-like' corpus that the embedded base is pretrained on: solutions of mixed quality.

A document is a question and what somebody wrote under it. For the search problems (`pick_two`, `countdown`) there are
four habits, in the shares of `HABITS`:

- `direct`: an expression, nothing worked out; wrong more often than not.
- `steps`: one attempt worked out and handed in, right or wrong.
- `check`: an attempt, and how far off it is; after a miss one quiet second try or none, then the last try is handed in.
- `wait`: the minority that notices a miss, writes 'wait' and goes on until an attempt hits (or, rarely, gives up).

Every attempt is worked out correctly; a check writes the distance to the target, `off 0` being a hit, and a step that
the game forbids is refused (`9 / 2 = fails`). Formats are mixed too (`FORMATS`): about four documents in ten put their
work in <think> tags and their result in <answer> tags. Exercises (`DRILLS`) fill the share `drill`, and pretraining
starts with more of them: arithmetic questions, yes/no checks ("does 3 + 5 make 9 ?"), the last step to a target, the
pairs of some numbers in reading order, and lists of attempts, worked out one after the other and left without a verdict
or an answer. What RL later amplifies is therefore here, as a minority habit: the result is a sharpening, not an
invention.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import combinations

from r1lab.tasks.arithmetic import Question, draw_question
from r1lab.tasks.countdown import MAX_NUMBER, MAX_TARGET, Problem, draw_problem, scan_pairs
from r1lab.tasks.expressions import (
    FAILS,
    MAX_VALUE,
    OPS,
    Expression,
    combine,
    distance,
    evaluate,
    random_expression,
    random_slip,
    render,
    work_out,
)

HABITS = {"direct": 0.35, "steps": 0.25, "check": 0.28, "wait": 0.12}
FORMATS = {"tagged": 0.36, "plain": 0.25, "unclosed": 0.14, "answer_only": 0.13, "think_only": 0.12}
PROBLEMS = {
    ("pick_two", 3): 0.34,
    ("pick_two", 4): 0.13,
    ("pick_two", 5): 0.04,
    ("countdown", 3): 0.30,
    ("countdown", 4): 0.19,
}
"""Share of each family and difficulty."""

HIT_FIRST = 0.2
"""Chance that a first try is drawn to be right; a random try may hit as well."""
SLIP = 0.12
"""Chance that a Countdown guess has a forbidden step."""
MAX_TRIES = 9
"""Of a search by guessing, the solution included."""
MAX_GUESSES_LISTED = 6
"""Attempts in an exercise that lists guesses."""
LISTED = {3: 0.4, 4: 0.35, 5: 0.25}
"""Share of each difficulty of pick-two in exercises that go through the pairs."""
GIVE_UP = 0.03


def _draw(rng: random.Random) -> Problem:
    return draw_problem(rng, *_pick(rng, PROBLEMS), "train")


def _pick(rng: random.Random, shares: dict):
    return rng.choices(list(shares), weights=shares.values())[0]


def _finish(left: Expression, right: Expression, target: int) -> Expression:
    """The two parts combined so as to come nearest to the target: people have a feeling for the last step."""
    orders = [(op, *pair) for op in OPS for pair in ((left, right), (right, left))]
    allowed = [draw for draw in orders if combine(draw[0], evaluate(draw[1]), evaluate(draw[2])) is not None]
    return min(allowed, key=lambda draw: abs(evaluate(draw) - target))


def _scan(problem: Problem) -> list[Expression]:
    """Tries in reading order: each pair of numbers, combined in each way and (Countdown) finished with the third."""
    if problem.family == "pick_two":
        return scan_pairs(problem.numbers)
    tries = []
    for i, j in combinations(range(3), 2):
        rest = problem.numbers[3 - i - j]
        high, low = sorted((problem.numbers[i], problem.numbers[j]), reverse=True)
        for op in OPS:
            first = (op, high, low) if op in "-/" else (op, problem.numbers[i], problem.numbers[j])
            if combine(*first) is not None:
                tries.append(_finish(first, rest, problem.target))
    return tries


def _guess(rng: random.Random, problem: Problem) -> Expression:
    """A try: a draw of the rules, in Countdown with a good last step three times out of four, or a slip."""
    if problem.family == "pick_two":
        return rng.choice(scan_pairs(problem.numbers))
    if rng.random() < SLIP:
        return random_slip(rng, list(problem.numbers))
    draw = random_expression(rng, list(problem.numbers))
    return _finish(draw[1], draw[2], problem.target) if rng.random() < 0.75 else draw


def _first_try(rng: random.Random, problem: Problem) -> Expression:
    return problem.solution if rng.random() < HIT_FIRST else _guess(rng, problem)


def _has_reading_order(problem: Problem) -> bool:
    return problem.family == "pick_two" or len(problem.numbers) == 3


def _guesses(rng: random.Random, problem: Problem, number: int) -> list[Expression]:
    return list(dict.fromkeys(_guess(rng, problem) for _ in range(number)))


def _search(rng: random.Random, problem: Problem) -> list[Expression]:
    """Tries up to and including the first that hits: a guess, then all in reading order or, where there are too many,
    more guesses."""
    if _has_reading_order(problem):
        candidates = [_guess(rng, problem), *_scan(problem)]
    else:
        candidates = [*_guesses(rng, problem, MAX_TRIES - 1), problem.solution]
    hit = next(i for i, candidate in enumerate(candidates) if distance(candidate, problem.target) == 0)
    return candidates[: hit + 1]


def write_attempt(expression: Expression, target: int) -> str:
    """A try worked out, and its check unless a step is forbidden: `3 + 5 = 8 off 1 .`"""
    off = distance(expression, target)
    return f"{work_out(expression)} ." if off is None else f"{work_out(expression)} off {off} ."


def _solve(rng: random.Random, problem: Problem, habit: str) -> tuple[str, Expression]:
    """The work of one habit, and the expression it hands in."""
    if habit == "direct":
        answer = _first_try(rng, problem)
        return f"{rng.choice(('maybe', 'i think'))} {render(answer)}", answer
    if habit == "steps":
        answer = _first_try(rng, problem)
        return f"{work_out(answer)} .", answer
    if habit == "check":
        tries = [_first_try(rng, problem)]
        if distance(tries[0], problem.target) != 0 and rng.random() < 0.5:
            tries.append(_guess(rng, problem))
        separator = " no "
    else:
        tries = _search(rng, problem)
        if len(tries) > 2 and rng.random() < GIVE_UP:
            tries = tries[: rng.randint(2, len(tries) - 1)]
        separator = " wait "
    work = separator.join(write_attempt(expression, problem.target) for expression in tries)
    verdict = "yes" if distance(tries[-1], problem.target) == 0 else "no"
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


def _draw_listed(rng: random.Random) -> Problem:
    problem = _draw(rng)
    if problem.family == "pick_two":
        return draw_problem(rng, "pick_two", _pick(rng, LISTED), "train")
    return problem


def _list_attempts(rng: random.Random) -> str:
    """An exercise: tries worked out one after the other, hit or miss."""
    problem = _draw_listed(rng)
    amount = "two" if problem.family == "pick_two" else "all"
    if problem.family == "pick_two" or (_has_reading_order(problem) and rng.random() < 0.7):
        tries = [_guess(rng, problem), *_scan(problem)]
    else:
        tries = _guesses(rng, problem, MAX_GUESSES_LISTED)
    work = " ".join(write_attempt(attempt, problem.target) for attempt in tries)
    return f"User : try {amount} of {_write(problem.numbers)} to make {problem.target} . Assistant : {work}"


def _list_pairs(rng: random.Random) -> str:
    """An exercise: the pairs of some numbers in reading order, after one of them out of turn."""
    numbers = [rng.randint(1, MAX_NUMBER["pick_two"]) for _ in range(_pick(rng, LISTED))]
    pairs = list(combinations(numbers, 2))
    work = " . ".join(f"{a} {b}" for a, b in [rng.choice(pairs), *pairs])
    return f"User : pairs of {_write(numbers)} . Assistant : {work} ."


def _last_step(rng: random.Random) -> str:
    """An exercise: two numbers, the first as a step would leave it, and the operation that makes the target."""
    numbers = [rng.randint(1, MAX_NUMBER["countdown"]) for _ in range(3)]
    while True:
        first = evaluate(random_expression(rng, numbers[:2]))
        answer = random_expression(rng, [first, numbers[2]])
        if (target := evaluate(answer)) <= MAX_TARGET:
            break
    work = f"{write_attempt(answer, target)} yes"
    return f"User : use {first} {numbers[2]} to make {target} . Assistant : {_lay_out(rng, work, render(answer))}"


def _drill(rng: random.Random) -> str:
    return _pick(rng, DRILLS)(rng)


def _fact(rng: random.Random) -> str:
    """An arithmetic question, or whether an expression (often just a number) makes a target."""
    kind = rng.random()
    if kind < 0.1:
        numbers = [rng.randint(1, MAX_NUMBER["countdown"]) for _ in range(rng.choice((2, 2, 3)))]
        expression = random_slip(rng, numbers)
    elif kind < 0.3:
        expression = draw_question(rng, rng.choice((2, 3, 4)), "train").expression
    else:
        expression = random_expression(rng, [rng.randint(1, MAX_TARGET), rng.randint(1, MAX_TARGET)], "+-")
    if rng.random() < 0.5:
        value = FAILS if distance(expression, 0) is None else str(evaluate(expression))
        return f"{Question(expression).prompt} {_lay_out(rng, work_out(expression), value)}"
    number = rng.randint(1, MAX_VALUE if rng.random() < 0.15 else MAX_TARGET)
    return _does_it_make(rng, expression if rng.random() < 0.4 else number)


def _does_it_make(rng: random.Random, subject: Expression) -> str:
    """An exercise: is this the target?"""
    target = rng.randint(1, MAX_TARGET)
    if rng.random() < 0.3 and distance(subject, 0) is not None:
        target = evaluate(subject)
    answer = "yes" if distance(subject, target) == 0 else "no"
    work = f"{write_attempt(subject, target)} {answer}"
    return f"User : does {render(subject)} make {target} ? Assistant : {_lay_out(rng, work, answer)}"


DRILLS = {_list_attempts: 0.35, _list_pairs: 0.2, _last_step: 0.1, _fact: 0.35}
"""Share of each kind of exercise."""


def write_document(rng: random.Random, drill: float) -> str:
    """One document, prompt and solution. `drill` is the chance of an arithmetic drill instead of a search problem."""
    if rng.random() < drill:
        return _drill(rng)
    problem = _draw(rng)
    work, answer = _solve(rng, problem, _pick(rng, HABITS))
    return f"{problem.prompt} {_lay_out(rng, work, render(answer))}"


def stream_documents(seed: int, drill: float) -> Iterator[str]:
    """An endless stream of documents, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield write_document(rng, drill)
