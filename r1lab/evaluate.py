"""Held-out evaluation: sampled and greedy accuracy, pass@k, maj@k, with standard errors over problems."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from r1lab.trace.reflection import find_reflections, reflection_metrics
from r1lab.types import Completion, Prompt
from rewards.countdown import check_expression
from rewards.format import format_reward
from rewards.math import verify

Generate = Callable[[list[list[int]], int, float], list[list[Completion]]]
"""(prompt_ids, completions per prompt, temperature) -> completions; temperature 0 is greedy."""

RewardFunction = Callable[..., list[float | None]]


@dataclass(slots=True)
class Judged:
    """One completion of an evaluation."""

    text: str
    is_correct: bool
    """By the strict reward: the answer stands where it should and is right."""
    is_correct_blind: bool
    """Format-blind: the last thing offered as an answer, in whatever form, is right."""
    is_well_formed: bool
    answer: str | None
    num_tokens: int
    is_truncated: bool


def find_answer(text: str) -> str | None:
    """The last thing a completion offers as its answer: in answer tags (closed or not), else after 'answer is'."""
    for opening in ("<answer>", "answer is"):
        _, found, rest = text.rpartition(opening)
        if found:
            return re.split(r"<|\n", rest.strip(": \n"), maxsplit=1)[0].rstrip(" .") or None
    return None


def judge_answer(answer: str | None, columns: dict[str, Any]) -> bool:
    """Whether an answer is right, whatever it was written in: by the rules of the numbers game, else by value."""
    if answer is None:
        return False
    if columns.get("numbers") is not None:
        return check_expression(answer, columns["numbers"], columns["target"], columns.get("num_used")) == "correct"
    return verify(columns["solution"], answer)


def judge_completions(
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    decode: Callable[[list[int]], str],
    reward: RewardFunction,
) -> list[list[Judged]]:
    """Judges every completion of every prompt; a strict reward of 1 counts as correct."""
    judged = []
    for prompt, group in zip(prompts, completions, strict=True):
        texts = [decode(completion.token_ids) for completion in group]
        columns = {name: [value] * len(texts) for name, value in prompt.columns.items()}
        scores = reward(prompts=[prompt.text] * len(texts), completions=texts, completion_ids=None, **columns)
        formats = format_reward(completions=texts)
        judged.append(
            [
                Judged(
                    text=text,
                    is_correct=score == 1.0,
                    is_correct_blind=judge_answer(find_answer(text), prompt.columns),
                    is_well_formed=well_formed == 1.0,
                    answer=find_answer(text),
                    num_tokens=len(completion.token_ids),
                    is_truncated=completion.finish_reason == "length",
                )
                for text, score, well_formed, completion in zip(texts, scores, formats, group, strict=True)
            ]
        )
    return judged


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right (Chen et al., 2021, equation 1)."""
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k} with {num_samples} samples: use 1 to {num_samples}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority_is_correct(group: Sequence[Judged], attribute: str = "is_correct") -> float:
    """maj@k: whether the most frequent answer is right; ties share. Completions without an answer do not vote."""
    votes = Counter(judged.answer for judged in group if judged.answer is not None)
    if not votes:
        return 0.0
    top = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == top]
    right = {judged.answer for judged in group if getattr(judged, attribute)}
    return sum(answer in right for answer in winners) / len(winners)


def summarize(judged: Sequence[Sequence[Judged]]) -> dict[str, float]:
    """Means over k completions of each problem. `_se` is the standard error over problems."""
    flat = [one for group in judged for one in group]
    k = len(judged[0])
    per_problem = [sum(one.is_correct for one in group) / k for group in judged]
    blind = [sum(one.is_correct_blind for one in group) / k for group in judged]
    summary = {
        "accuracy": _mean(per_problem),
        "accuracy_se": _standard_error(per_problem),
        "accuracy_blind": _mean(blind),
        "accuracy_blind_se": _standard_error(blind),
        "format": _mean([one.is_well_formed for one in flat]),
        "mean_length": _mean([one.num_tokens for one in flat]),
        "clipped_ratio": _mean([one.is_truncated for one in flat]),
        f"maj@{k}": _mean([majority_is_correct(group) for group in judged]),
        "num_problems": len(judged),
    }
    for size in (2**i for i in range(k.bit_length())):
        if size <= k:
            for name, attribute in (("pass", "is_correct"), ("pass_blind", "is_correct_blind")):
                counts = [sum(getattr(one, attribute) for one in group) for group in judged]
                summary[f"{name}@{size}"] = _mean([pass_at_k(k, count, size) for count in counts])
    return summary | reflection_metrics([one.text for one in flat], [one.is_correct for one in flat])


def evaluate_split(
    prompts: Sequence[Prompt],
    generate: Generate,
    decode: Callable[[list[int]], str],
    reward: RewardFunction,
    *,
    num_samples: int,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Sampled (`num_samples` at `temperature`) and greedy results on one split.

    Returns `accuracy`, `accuracy_blind` (with `_se`), `format`, `mean_length`, `clipped_ratio`, `pass@k`,
    `pass_blind@k`, `maj@k`, `reflection/*`, and `greedy_accuracy`, `greedy_accuracy_blind`.
    """
    prompt_ids = [prompt.token_ids for prompt in prompts]
    summary = summarize(judge_completions(prompts, generate(prompt_ids, num_samples, temperature), decode, reward))
    greedy = judge_completions(prompts, generate(prompt_ids, 1, 0.0), decode, reward)
    summary["greedy_accuracy"] = _mean([group[0].is_correct for group in greedy])
    summary["greedy_accuracy_blind"] = _mean([group[0].is_correct_blind for group in greedy])
    return summary


def reflection_token_ids(tokenizer: Any) -> tuple[int, ...]:
    """Every token that is, by itself, a word of the reflection lists: what an ablation bans at decode time."""
    return tuple(i for i in range(len(tokenizer)) if find_reflections(tokenizer.decode([i])))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
