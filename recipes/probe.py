"""Measure the skills that search-and-verify stands on, in what a policy itself writes on held-out problems.

    python recipes/probe.py [--model_name_or_path DIR] [--task pick_two] [--num_problems 300] [--num_samples 8]

RL can only amplify a habit that pays, so look here before a run: is an attempt worked out right (`arithmetic`), is its
distance to the target right (`distance`), are its steps those that the game allows (`legal`), does a hit get its 'yes'
and a miss none (`yes_on_hit`, `yes_on_miss`), is the last attempt the answer that is handed in (`copy`), and is it made
of the given numbers (`given`)?
"""

import ast
import json
import re
from dataclasses import dataclass, field
from functools import partial

from r1_zero import BASE
from trl import TrlParser

from r1lab.evaluate import find_answer
from r1lab.loading import EVAL_SEED, load_policy
from r1lab.rollout import RolloutEngine, SamplingParams
from r1lab.tasks import TASKS, encode_prompts, load_task
from r1lab.tasks.expressions import Expression, ForbiddenStepError, evaluate
from r1lab.trace.reflection import parse_attempts
from rewards.countdown import SIGNS, ExpressionError, check_expression, parse_expression

RIGHT_NUMBERS = ("correct", "wrong_value")
"""What `check_expression` says of an expression made of the given numbers."""


OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


@dataclass
class ProbeArguments:
    """What to probe."""

    model_name_or_path: str = field(default=str(BASE), metadata={"help": "Checkpoint directory."})
    task: str = field(default="pick_two", metadata={"help": "pick_two or countdown."})
    num_problems: int = field(default=300, metadata={"help": "Held-out problems per difficulty."})
    num_samples: int = field(default=8, metadata={"help": "Completions a problem, at temperature 1."})
    max_completion_length: int = field(default=256, metadata={"help": "Longest completion."})


SKILLS = ("arithmetic", "distance", "legal", "yes_on_hit", "yes_on_miss", "copy", "given")


def probe_text(text: str, columns: dict) -> dict[str, list[bool]]:
    """Every chance that a completion had to show a skill, and whether it did."""
    shown: dict[str, list[bool]] = {skill: [] for skill in SKILLS}
    numbers, target = columns["numbers"], columns["target"]
    attempts = parse_attempts(text)
    for attempt in attempts:
        try:
            value = game_value(attempt.expression)
        except ExpressionError:
            continue
        shown["legal"].append(value is not None)
        if value is not None:
            shown["arithmetic"].append(value == attempt.value)
        shown["given"].append(
            check_expression(attempt.expression, numbers, target, columns["num_used"]) in RIGHT_NUMBERS
        )
        shown["distance"].append(attempt.off == abs(attempt.value - target))
        verdict = re.match(r"[ .]*(\w+)", text[attempt.end :])
        if verdict:
            shown["yes_on_hit" if attempt.off == 0 else "yes_on_miss"].append(verdict[1] == "yes")
    answer = find_answer(text)
    if attempts and answer is not None:
        shown["copy"].append(_does_the_same(answer, attempts[-1].expression))
    return shown


def _does_the_same(answer: str, attempt: str) -> bool:
    """Whether an answer is what the attempt worked out: of the same numbers, and worth the same."""
    try:
        return game_value(answer) == game_value(attempt) and _numbers(answer) == _numbers(attempt)
    except ExpressionError:
        return False


def _numbers(text: str) -> list[str]:
    return sorted(re.findall(r"[0-9]+", text))


def game_value(text: str) -> int | None:
    """What an expression is worth by the rules of the game; None where they forbid a step.

    Raises ExpressionError for a text that is no expression.
    """
    try:
        parse_expression(text)  # bounds length and depth, and lets nothing but integers, + - * / and parentheses pass
    except ExpressionError as error:
        if error.reason == "division_by_zero":
            return None
        raise
    plain = re.sub(r"(?<![0-9])0+(?=[0-9])", "", text.translate(SIGNS)).strip()  # 05 is a number, but not Python's
    try:
        return evaluate(_read_node(ast.parse(plain, mode="eval").body))
    except ForbiddenStepError:
        return None


def _read_node(node: ast.expr) -> Expression:
    if isinstance(node, ast.Constant):
        return node.value
    return (OPERATORS[type(node.op)], _read_node(node.left), _read_node(node.right))


def main(args: ProbeArguments) -> None:
    policy, tokenizer = load_policy(args.model_name_or_path)
    engine = RolloutEngine(policy, eos_token_id=tokenizer.eos_token_id)
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    params = SamplingParams(n=args.num_samples, max_tokens=args.max_completion_length, seed=1)
    for difficulty in TASKS[args.task]:
        rows = load_task(args.task, "test", args.num_problems, EVAL_SEED, difficulty)
        prompts = encode_prompts(rows, tokenizer, max_length=512)
        totals: dict[str, list[bool]] = {}
        for prompt, group in zip(prompts, engine.generate([p.token_ids for p in prompts], params), strict=True):
            for completion in group:
                for skill, shown in probe_text(decode(completion.token_ids), prompt.columns).items():
                    totals.setdefault(skill, []).extend(shown)
        rates = {skill: [round(sum(s) / len(s), 4) if s else None, len(s)] for skill, s in totals.items()}
        print(f"{args.task} n={difficulty}", json.dumps(rates))


if __name__ == "__main__":
    main(TrlParser(ProbeArguments).parse_args_and_config()[0])
