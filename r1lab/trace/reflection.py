"""Reflection in completions: does a second look happen, and does it pay?

A count of keywords (words.py) says how often the policy reconsiders, not that reconsidering helps: it reflects where
the first try failed, so reflecting completions are right less often. Hence the conditional numbers of
`reflection_metrics`, over the tries of attempts.py.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal, NamedTuple

from r1lab.trace.attempts import Attempt, Equation, parse_attempts, parse_equations
from r1lab.trace.behaviours import Behaviours, find_behaviours, given_numbers
from r1lab.trace.words import REFLECTION_PATTERNS, Reflection, find_reflections

__all__ = [
    "REFLECTION_PATTERNS",
    "AhaEvent",
    "Attempt",
    "Reflection",
    "aha_events",
    "find_reflections",
    "parse_attempts",
    "reflection_metrics",
]


class AhaEvent(NamedTuple):
    """A change of mind that decided the outcome."""

    kind: Literal["aha", "inverse"]
    """"aha": wrong first try, reconsidered, right in the end. "inverse": a hit, reconsidered, wrong in the end."""
    attempt: Attempt
    """The try that was reconsidered."""
    reflection: Reflection
    """The first reflective word after it."""


def aha_events(text: str, is_correct: bool) -> list[AhaEvent]:
    """The change of mind that decided a search trace's outcome: at most one event.

    Args:
        text: the completion.
        is_correct: whether its final answer is right (by the reward, not by the policy's check).
    """
    attempts = parse_attempts(text)
    if is_correct:
        decisive = [attempt for attempt in attempts[:1] if attempt.off != 0 and attempt.reconsidered]
    else:
        decisive = [attempt for attempt in attempts if attempt.off == 0 and attempt.reconsidered][:1]
    return [
        AhaEvent("aha" if is_correct else "inverse", attempt, _first_after(find_reflections(text), attempt.end))
        for attempt in decisive
    ]


def _first_after(reflections: list[Reflection], position: int) -> Reflection:
    return next(reflection for reflection in reflections if reflection.start >= position)


class _Look(NamedTuple):
    """What the metrics need of one completion."""

    prompt: Hashable
    is_correct: bool
    length: int
    """In words."""
    keywords: set[str]
    attempts: list[Attempt]
    behaviours: Behaviours


def reflection_metrics(
    texts: Sequence[str], is_correct: Sequence[bool], prompts: Sequence[str] | None = None
) -> dict[str, float]:
    """Reflection over a batch of completions, keyed for the metrics file.

    Args:
        prompts: the prompt of each completion; None: unknown, so that nothing is compared within one.

    Returns (shares of all completions unless said otherwise; {} for an empty batch):
        reflection/rate: with at least one reflective word
        reflection/keyword/<keyword>: with that word (only words that occur)
        reflection/behaviour/<name>: that show it (see `Behaviours`)
        reflection/aha_rate: first try wrong, reconsidered, final answer right
        reflection/inverse_rate: a hit was reconsidered, final answer wrong
        reflection/p_correct_wrong_first_reconsidered, ..._not_reconsidered: share of right final answers among the
            completions whose first try is wrong and is / is not followed by a reflective word; NaN if there is none
        reflection/num_wrong_first_reconsidered, ..._not_reconsidered: how many these are
        reflection/within_prompt/p_correct_..., reflection/same_length/p_correct_...: the same two shares compared
            among completions of one prompt, or of about one length only, so that harder prompts, or longer texts,
            cannot make the difference (see `_standardized`); reflection/<one of both>/num_strata: how many prompts, or
            lengths, have completions of both kinds. Going on makes a text longer, so equal length asks another
            question than equal prompts: read both
        reflection/mean_attempts: tries a completion

    Raises:
        ValueError: the lengths differ.
    """
    if len(texts) != len(is_correct):
        raise ValueError(f"{len(texts)} texts but {len(is_correct)} is_correct flags: give one flag for each text")
    if prompts is not None and len(prompts) != len(texts):
        raise ValueError(f"{len(texts)} texts but {len(prompts)} prompts: give one prompt for each text")
    if not len(texts):
        return {}
    unknown = [f"prompt {index}" for index in range(len(texts))]
    looks = _look_at(texts, is_correct, unknown if prompts is None else prompts)
    total = len(looks)
    wrong_first = [look for look in looks if look.attempts and look.attempts[0].off != 0]
    num_aha = sum(look.is_correct for look in wrong_first if look.attempts[0].reconsidered)
    num_inverse = sum(
        not look.is_correct and any(one.off == 0 and one.reconsidered for one in look.attempts) for look in looks
    )
    counts = Counter(keyword for look in looks for keyword in look.keywords)
    return {
        "reflection/rate": sum(bool(look.keywords) for look in looks) / total,
        "reflection/aha_rate": num_aha / total,
        "reflection/inverse_rate": num_inverse / total,
        "reflection/mean_attempts": sum(len(look.attempts) for look in looks) / total,
        **_conditional_metrics(wrong_first),
        **{
            f"reflection/behaviour/{name}": sum(getattr(look.behaviours, name) for look in looks) / total
            for name in Behaviours._fields
        },
        **{f"reflection/keyword/{keyword}": count / total for keyword, count in sorted(counts.items())},
    }


def _look_at(texts: Sequence[str], is_correct: Iterable[bool], prompts: Sequence[str]) -> list[_Look]:
    numbers = {prompt: given_numbers(prompt) for prompt in set(prompts)}
    looks = []
    for text, right, prompt in zip(texts, is_correct, prompts, strict=True):
        reflections = find_reflections(text)
        equations: list[Equation] = parse_equations(text)
        attempts = parse_attempts(text, equations, reflections)
        looks.append(
            _Look(
                prompt=prompt,
                is_correct=bool(right),
                length=len(text.split()),
                keywords={reflection.keyword for reflection in reflections},
                attempts=attempts,
                behaviours=find_behaviours(text, numbers[prompt], equations, attempts),
            )
        )
    return looks


def _conditional_metrics(wrong_first: Sequence[_Look]) -> dict[str, float]:
    """P(right in the end | the first try is wrong and reconsidered, or not): plain, and with its confounders held."""
    metrics = {}
    for reconsidered, name in ((True, "wrong_first_reconsidered"), (False, "wrong_first_not_reconsidered")):
        rights = [look.is_correct for look in wrong_first if look.attempts[0].reconsidered is reconsidered]
        metrics[f"reflection/p_correct_{name}"] = sum(rights) / len(rights) if rights else math.nan
        metrics[f"reflection/num_{name}"] = float(len(rights))
    strata = {
        "within_prompt": [look.prompt for look in wrong_first],
        "same_length": [look.length.bit_length() for look in wrong_first],  # lengths within a factor of two
    }
    for name, keys in strata.items():
        with_it, without, num_strata = _standardized(wrong_first, keys)
        metrics[f"reflection/{name}/p_correct_wrong_first_reconsidered"] = with_it
        metrics[f"reflection/{name}/p_correct_wrong_first_not_reconsidered"] = without
        metrics[f"reflection/{name}/num_strata"] = float(num_strata)
    return metrics


def _standardized(looks: Sequence[_Look], keys: Sequence[Hashable]) -> tuple[float, float, int]:
    """(share right if reconsidered, if not, number of strata) over the strata that have both kinds.

    Both are means over strata with Mantel and Haenszel's weights n1 n0 / (n1 + n0) (1959), so that their difference is
    the Mantel-Haenszel risk difference. NaN without any such stratum.
    """
    strata: dict[Hashable, dict[bool, list[bool]]] = {}
    for look, key in zip(looks, keys, strict=True):
        strata.setdefault(key, {True: [], False: []})[look.attempts[0].reconsidered].append(look.is_correct)
    both = [one for one in strata.values() if one[True] and one[False]]
    if not both:
        return math.nan, math.nan, 0
    weights = [len(one[True]) * len(one[False]) / (len(one[True]) + len(one[False])) for one in both]
    shares = [
        sum(w * sum(one[kind]) / len(one[kind]) for w, one in zip(weights, both, strict=True)) / sum(weights)
        for kind in (True, False)
    ]
    return shares[0], shares[1], len(both)
