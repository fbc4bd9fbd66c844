"""Is the final answer right?"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rewards.math.extract import extract_answer
from rewards.math.policy import DEFAULT, Policy
from rewards.math.verdict import TIMEOUT_S, Verdict, check
from rewards.text import completion_text, find_column

GOLD_COLUMNS = ("solution", "answer", "ground_truth", "target")
UNSCORABLE = frozenset({"unparsable_gold", "error"})
"""Reasons that say nothing about the completion: no score, instead of a silent 0 or 1."""
REASONS = ("match", "mismatch", "no_answer", "timeout", "unparsable_gold", "error")


def accuracy_reward(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] = (),
    completion_ids: Sequence[Any] | None = None,
    *,
    answer_mode: str = "auto",
    timeout_s: float = TIMEOUT_S,
    policy: Policy = DEFAULT,
    log_metric: Callable[[str, float], None] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 where the completion's final answer equals the gold one, 0.0 where it does not or there is none.

    The gold comes from the first of the columns solution, answer, ground_truth, target: a bare answer, a number, or a
    worked solution ending in `#### N` (GSM8K) or holding a `\\boxed{}` (MATH). A row whose gold cannot be read gets
    None, as does one for which our own worker failed. `answer_mode` is the `mode` of `extract_answer`, `timeout_s` and
    `policy` are those of `check`, one for all rows. TRL passes `log_metric`, which gets the share of each reason as
    `accuracy/<reason>`, and `log_extra`, which gets each row's reason and the rule that decided.

    Raises TypeError without any gold column, ValueError for a column of another length.
    """
    golds = find_column(columns, GOLD_COLUMNS, len(completions))
    texts = [completion_text(completion) for completion in completions]
    # One decision for each different pair: a group may repeat a slow answer, and timeouts are not cached.
    decided: dict[tuple[str, str, str | None], Verdict] = {}
    verdicts = []
    for text, gold in zip(texts, golds, strict=True):
        pair = (type(gold).__name__, str(gold), extract_answer(text, answer_mode))
        if pair not in decided:
            decided[pair] = check(gold, pair[2], timeout_s=timeout_s, policy=policy)
        verdicts.append(decided[pair])
    if log_metric is not None and verdicts:
        counts = Counter(verdict.reason for verdict in verdicts)
        for reason in REASONS:
            log_metric(f"accuracy/{reason}", counts[reason] / len(verdicts))
    if log_extra is not None:
        log_extra("accuracy_reason", [verdict.reason for verdict in verdicts])
        log_extra("accuracy_rule", [verdict.rule for verdict in verdicts])
    return [score(verdict) for verdict in verdicts]


def score(verdict: Verdict) -> float | None:
    """The reward of a verdict: None where it says nothing about the answer."""
    return None if verdict.reason in UNSCORABLE else float(verdict.equal)
