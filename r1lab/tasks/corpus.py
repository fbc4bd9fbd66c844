"""The synthetic 'web-like' corpus that the embedded base is pretrained on: solutions of mixed quality.

A document is a question and what somebody wrote under it. For the search problems (`pick_two`, `countdown`) there are
four habits, in the shares of `HABITS`:

- `direct`: an expression, nothing worked out; wrong more often than not.
- `steps`: one attempt worked out and handed in, right or wrong.
- `check`: an attempt, and how far off it is; after a miss one quiet second try or none, then the last try is handed in.
- `wait`: the minority that notices a miss, writes 'wait' and goes on until an attempt hits (or, rarely, gives up).

Every attempt is worked out correctly; a check writes the distance to the target, `off 0` being a hit. Formats are
mixed too (`FORMATS`): about four documents in ten put their work in <think> tags and their result in <answer> tags.
Arithmetic questions and yes/no checks ("does 3 + 5 make 9 ?") fill the share `drill`; pretraining starts with more of
them. What RL later amplifies is therefore here, as a minority habit: the result is a sharpening, not an invention.
"""

import random
from collections.abc import Iterator

from r1lab.tasks.arithmetic import Question, draw_question
from r1lab.tasks.countdown import MAX_TARGET, Problem, draw_problem, scan_pairs
from r1lab.tasks.expressions import MAX_VALUE, Expression, evaluate, random_expression, render, work_out

HABITS = {"direct": 0.35, "steps": 0.25, "check": 0.28, "wait": 0.12}
FORMATS = {"tagged": 0.42, "plain": 0.22, "unclosed": 0.13, "answer_only": 0.12, "think_only": 0.11}
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
SYSTEMATIC = 0.8
"""Share of the pick-two searchers that go through the pairs in reading order instead of at random."""
MAX_TRIES = {"pick_two": 24, "countdown": 9}
GIVE_UP = 0.03


def _pick(rng: random.Random, shares: dict):
    return rng.choices(list(shares), weights=shares.values())[0]


def _guess(rng: random.Random, problem: Problem) -> Expression:
    """A try: a draw of the rules, or the nearest to the target of a few draws (people have a feeling for numbers)."""
    if problem.family == "pick_two":
        return rng.choice(scan_pairs(problem.numbers))
    draws = [random_expression(rng, list(problem.numbers)) for _ in range(rng.choice((1, 2, 4)))]
    return min(draws, key=lambda draw: abs(evaluate(draw) - problem.target))


def _first_try(rng: random.Random, problem: Problem) -> Expression:
    return problem.solution if rng.random() < HIT_FIRST else _guess(rng, problem)


def _search(rng: random.Random, problem: Problem) -> list[Expression]:
    """Distinct tries up to and including the first that hits."""
    tries = []
    if problem.family == "pick_two":
        candidates = scan_pairs(problem.numbers)
        if rng.random() >= SYSTEMATIC:
            rng.shuffle(candidates)
    else:
        misses = [_first_try(rng, problem)] + [_guess(rng, problem) for _ in range(rng.randint(0, 6))]
        candidates = [*dict.fromkeys(misses), problem.solution]
    for candidate in candidates:
        tries.append(candidate)
        if evaluate(candidate) == problem.target:
            break
    return tries


def _attempt(expression: Expression, target: int) -> str:
    return f"{work_out(expression)} off {abs(evaluate(expression) - target)} ."


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
        if evaluate(tries[0]) != problem.target and rng.random() < 0.5:
            tries.append(_guess(rng, problem))
        separator = " no "
    else:
        tries = _search(rng, problem)
        if len(tries) > 2 and rng.random() < GIVE_UP:
            tries = tries[: rng.randint(2, len(tries) - 1)]
        tries = tries[: MAX_TRIES[problem.family]]
        separator = " wait "
    work = separator.join(_attempt(expression, problem.target) for expression in tries)
    verdict = "yes" if evaluate(tries[-1]) == problem.target else "no"
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


def _drill(rng: random.Random) -> str:
    """An arithmetic question, or whether an expression (often just a number) makes a target."""
    kind = rng.random()
    if kind < 0.25:
        question = draw_question(rng, rng.choice((2, 3, 4)), "train")
    else:
        question = Question(random_expression(rng, [rng.randint(1, MAX_TARGET), rng.randint(1, MAX_TARGET)], "+-"))
    if kind < 0.5:
        return f"{question.prompt} {_lay_out(rng, work_out(question.expression), str(question.answer))}"
    subject = question.expression if kind < 0.7 else rng.randint(1, MAX_VALUE if kind < 0.75 else MAX_TARGET)
    value = evaluate(subject)
    target = value if rng.random() < 0.3 else rng.randint(1, MAX_TARGET)
    answer = "yes" if value == target else "no"
    work = f"{_attempt(subject, target)} {answer}"
    return f"User : does {render(subject)} make {target} ? Assistant : {_lay_out(rng, work, answer)}"


def write_document(rng: random.Random, drill: float) -> str:
    """One document, prompt and solution. `drill` is the chance of an arithmetic drill instead of a search problem."""
    if rng.random() < drill:
        return _drill(rng)
    family, n = _pick(rng, PROBLEMS)
    problem = draw_problem(rng, family, n, "train")
    work, answer = _solve(rng, problem, _pick(rng, HABITS))
    return f"{problem.prompt} {_lay_out(rng, work, render(answer))}"


def stream_documents(seed: int, drill: float) -> Iterator[str]:
    """An endless stream of documents, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield write_document(rng, drill)
