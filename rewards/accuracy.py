"""Is the final answer right?"""

from collections.abc import Sequence
from typing import Any

from rewards.math.extract import extract_answer
from rewards.math.verify import gold_answer, verify
from rewards.text import completion_text, find_column

GOLD_COLUMNS = ("solution", "answer", "ground_truth", "target")


def accuracy_reward(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] = (),
    completion_ids: Sequence[Any] | None = None,
    *,
    answer_mode: str = "auto",
    **columns: Any,
) -> list[float | None]:
    """1.0 where the completion's final answer equals the gold one, 0.0 where it does not or there is none.

    The gold comes from the first of the columns solution, answer, ground_truth, target: a bare answer, a number, or a
    worked solution ending in `#### N` (GSM8K) or holding a `\\boxed{}` (MATH). A row whose gold is None or empty gets
    None. `answer_mode` is the `mode` of `extract_answer`, one for all rows.

    Raises TypeError without any gold column, ValueError for a column of another length.
    """
    golds = find_column(columns, GOLD_COLUMNS, len(completions))
    texts = [completion_text(completion) for completion in completions]
    return [_score(text, gold, answer_mode) for text, gold in zip(texts, golds, strict=True)]


def _score(text: str, gold: Any, mode: str) -> float | None:
    parsed = gold_answer(gold)
    if parsed is None:
        return None
    answer = extract_answer(text, mode)
    return float(answer is not None and verify(parsed, answer))
