"""Does an answer equal the gold one? The verdict, its reason, and the rule that decided."""

import math
import numbers
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rewards.math.compare import CHOICES, Comparison
from rewards.math.exact import Deadline, OutOfTime
from rewards.math.extract import after_hashes, choice_letter, last_box
from rewards.math.lexer import MAX_LENGTH, ParseError
from rewards.math.nodes import Node, contains, free_atoms
from rewards.math.normalize import plain_text, to_latex
from rewards.math.numbers import parse_number
from rewards.math.parser import parse
from rewards.math.policy import DEFAULT, Policy
from rewards.math.signs import expand_signs
from rewards.math.solutions import same_solutions
from rewards.math.values import is_finite_decimal
from rewards.math.worker import WorkerError, pool
from rewards.text import is_blank

TIMEOUT_S = 2.0
CACHE_SIZE = 1 << 15
_CONDITIONS = frozenset({"rel", "list", "or", "set", "seq", "union", "intersection", "minus", "named_set"})
"""Forms that say which numbers are meant."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found."""

    equal: bool
    reason: str
    """match, mismatch, no_answer, timeout; unparsable_gold and error say nothing about the answer."""
    rule: str
    """Which rule decided, in words."""
    gold: Node | None = None
    answer: Node | None = None
    """The parsed forms, where it came to parsing; `str()` shows them."""


def verify(gold: Any, answer: str | None, *, timeout_s: float = TIMEOUT_S, policy: Policy = DEFAULT) -> bool:
    """Whether `answer` equals `gold`, both written by people or models. Never raises on any text.

    The gold is bare LaTeX or plain text, a number, a solution that ends in `#### N` or one that holds a `\\boxed{}`.
    See `check`, which also says why, and `Policy` for what is a matter of taste.
    """
    return check(gold, answer, timeout_s=timeout_s, policy=policy).equal


def check(gold: Any, answer: str | None, *, timeout_s: float = TIMEOUT_S, policy: Policy = DEFAULT) -> Verdict:
    """The verdict on `answer`, decided within `timeout_s` seconds (a fraction more on a busy machine).

    Safe in any thread and process; no signals. Verdicts are cached per (gold, answer, policy), except "timeout" and
    "error", which depend on the machine's load. Raises ValueError for a timeout that is not positive, TypeError for an
    answer that is neither a text nor None.
    """
    if not timeout_s > 0:
        raise ValueError(f"timeout_s={timeout_s}; pass a positive number of seconds")
    if not isinstance(answer, str | None):
        raise TypeError(f"the answer must be a text, not {type(answer).__name__}")
    gold = gold_answer(gold)
    if gold is None:
        return Verdict(False, "unparsable_gold", "the gold holds no answer")
    if answer is not None and ("\\boxed" in answer or "\\fbox" in answer):
        answer = last_box(answer)
    if answer is None or is_blank(answer):
        return Verdict(False, "no_answer", "no answer")
    if len(gold) > MAX_LENGTH:
        return Verdict(False, "unparsable_gold", f"longer than {MAX_LENGTH} characters")
    if len(answer) > MAX_LENGTH:
        return Verdict(False, "mismatch", f"longer than {MAX_LENGTH} characters")
    try:
        return _check(gold, answer, timeout_s, policy)
    # What depends on the machine's load is not cached: an exception passes lru_cache by.
    except OutOfTime:
        trees = (_parse(text, policy.decimal_comma) for text in (gold, answer))
        return Verdict(False, "timeout", f"not decided in {timeout_s} s", *trees)
    except WorkerError as error:
        return Verdict(False, "error", str(error))


def gold_answer(gold: Any) -> str | None:
    """The bare gold answer: of a number, a bare answer or a worked solution. None when there is none."""
    if isinstance(gold, numbers.Real) and not isinstance(gold, bool):
        return str(gold) if math.isfinite(gold) else None
    if not isinstance(gold, str):
        return None
    found = after_hashes(gold) if "####" in gold else last_box(gold) if "\\boxed" in gold else gold
    # What a missing value of a table becomes as text is no answer either.
    return None if found is None or is_blank(found) or found.strip().lower() == "nan" else found.strip()


@lru_cache(CACHE_SIZE)
def _check(gold: str, answer: str, timeout_s: float, policy: Policy) -> Verdict:
    """Cheapest first: numbers, then trees, then sympy. Raises OutOfTime and WorkerError."""
    if not policy.decimal_comma and (equal := _compare_numbers(gold, answer)) is not None:
        return Verdict(equal, "match" if equal else "mismatch", "exact numbers")
    gold_tree = _parse(gold, policy.decimal_comma)
    if gold_tree is None:
        return Verdict(False, "unparsable_gold", "the gold is neither mathematics nor words")
    answer_tree = _parse(answer, policy.decimal_comma)
    if _is_choice(gold_tree) and (letter := choice_letter(to_latex(answer))):
        equal = letter == gold_tree.args[0]
        return Verdict(equal, "match" if equal else "mismatch", "choices", gold_tree, answer_tree)
    if answer_tree is None:
        return Verdict(False, "mismatch", "the answer is neither mathematics nor words", gold_tree)
    deadline = Deadline(timeout_s)
    comparison = Comparison(policy, deadline)
    equal, rule = comparison.decide(gold_tree, answer_tree)
    if not equal:
        equal, rule = _prove(comparison, gold_tree, answer_tree) or (equal, rule)
    return Verdict(equal, "match" if equal else "mismatch", rule, gold_tree, answer_tree)


def _is_choice(node: Node) -> bool:
    return node.op == "sym" and node.args[0] in CHOICES


def _compare_numbers(gold: str, answer: str) -> bool | None:
    """Of two plain numbers; None where a rule beyond equality may apply."""
    gold_value = parse_number(gold)
    if gold_value is None:
        return None
    value = parse_number(answer)
    if value is None or value == gold_value:
        return None if value is None else True
    # A decimal may still stand for a fraction that repeats.
    repeats = "." in gold + answer and not (is_finite_decimal(gold_value) and is_finite_decimal(value))
    return None if repeats else False


@lru_cache(CACHE_SIZE)
def _parse(text: str, decimal_comma: bool) -> Node | None:
    """The tree of a text, the text itself as a node where it is words, None where it is neither."""
    latex = to_latex(text)
    try:
        return expand_signs(parse(latex, decimal_comma=decimal_comma))
    except ParseError:
        if latex.count("{") != latex.count("}") or not any(map(str.isalnum, latex)):
            return None
        return Node("text", (plain_text(latex),))


def _prove(comparison: Comparison, gold: Node, answer: Node) -> tuple[bool, str] | None:
    """What needs more than the rules: solution sets, evaluated sums. None where nothing was left open.

    Raises OutOfTime and WorkerError.
    """
    if contains(gold, "operator") or contains(answer, "operator"):
        if not comparison.policy.evaluate_operators:
            return None
        return bool(pool().same("values", gold, answer, comparison.deadline)), "sympy: values"
    unknowns = free_atoms(gold) | free_atoms(answer)
    conditions = contains(gold, "rel") and answer.op in _CONDITIONS
    if not (comparison.undecided and conditions and len(unknowns) == 1):
        return None
    (unknown,) = unknowns
    equal = same_solutions(gold, answer, unknown, comparison.deadline)
    if equal is None and unknown.op == "sym":
        return bool(pool().same("sets", gold, answer, comparison.deadline)), "sympy: sets"
    return bool(equal), "solution sets"
