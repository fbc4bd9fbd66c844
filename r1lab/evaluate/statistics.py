"""Judged completions -> numbers: means over problems, their intervals, and tests of differences.

The unit of sampling is the problem: completions of one problem are not independent, so intervals and tests resample
problems, never completions.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy

from r1lab.evaluate.judge import Judged
from r1lab.trace.reflection import reflection_metrics
from rewards.math import parse_number

NUM_RESAMPLES = 10_000
MAX_EXACT_FLIPS = 14
"""Up to so many problems that differ, a sign-flip test goes through every flip."""
_CHUNK = 4_000_000
"""Numbers held at a time by a resampling."""


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right (Chen et al., 2021, equation 1)."""
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k} with {num_samples} samples: use 1 to {num_samples}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... up to `largest`."""
    return [2**i for i in range(largest.bit_length()) if 2**i <= largest]


def majority_is_correct(group: Sequence[Judged], attribute: str = "is_correct") -> float:
    """maj@k: whether the most frequent answer is right; ties share. Completions without an answer do not vote.

    Answers are the same when they are the same number, or else the same words.
    """
    votes = Counter(_vote(judged.answer) for judged in group if judged.answer is not None)
    if not votes:
        return 0.0
    top = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == top]
    right = {_vote(judged.answer) for judged in group if getattr(judged, attribute) and judged.answer is not None}
    return sum(answer in right for answer in winners) / len(winners)


def _vote(answer: str) -> object:
    value = parse_number(answer)
    return " ".join(answer.split()) if value is None else value


def problem_scores(judged: Sequence[Sequence[Judged]], *, has_votes: bool = True) -> dict[str, list[float]]:
    """Metric -> its value for each problem, of k completions each; a result is the mean over problems.

    accuracy (pass@1) and accuracy_blind, format, mean_length (tokens), clipped_ratio, pass@ and pass_blind@ 1, 2, 4,
    ..., and maj@k where answers can vote (programs cannot: pass has_votes=False).
    """
    k = len(judged[0])
    strict = [sum(one.is_correct for one in group) for group in judged]
    blind = [sum(one.is_correct_blind for one in group) for group in judged]
    scores = {
        "accuracy": [count / k for count in strict],
        "accuracy_blind": [count / k for count in blind],
        "format": [sum(one.is_well_formed for one in group) / k for group in judged],
        "mean_length": [sum(one.num_tokens for one in group) / k for group in judged],
        "clipped_ratio": [sum(one.is_truncated for one in group) / k for group in judged],
    }
    if has_votes:
        scores[f"maj@{k}"] = [majority_is_correct(group) for group in judged]
    for size in powers_of_two(k):
        for name, counts in (("pass", strict), ("pass_blind", blind)):
            scores[f"{name}@{size}"] = [pass_at_k(k, count, size) for count in counts]
    return scores


def summarize(
    judged: Sequence[Sequence[Judged]], prompts: Sequence[str] | None = None, *, has_votes: bool = True
) -> dict[str, float]:
    """The means of `problem_scores`, `num_problems`, and `reflection_metrics`.

    `accuracy_se` and `accuracy_blind_se` are standard errors over problems. prompts: as text, one a problem.
    """
    scores = problem_scores(judged, has_votes=has_votes)
    summary = {name: _mean(values) for name, values in scores.items()}
    for name in ("accuracy", "accuracy_blind"):
        summary[f"{name}_se"] = _standard_error(scores[name])
    summary["num_problems"] = len(judged)
    flat = [one for group in judged for one in group]
    names = [f"problem {index}" for index in range(len(judged))] if prompts is None else prompts
    repeated = [name for name, group in zip(names, judged, strict=True) for _ in group]
    return summary | reflection_metrics([one.text for one in flat], [one.is_correct for one in flat], repeated)


def bootstrap_intervals(
    scores: Mapping[str, Sequence[float]], *, level: float = 0.95, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap over problems (Efron, 1979) of each metric's mean: (low, high).

    All metrics share the resamples, so the difference of two may be given as a metric of its own. Where all problems
    agree (nothing solved, everything solved) the interval is that one point: the data say nothing about its width.
    Raises ValueError for no problems or a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: use a number between 0 and 1, such as 0.95")
    values = numpy.array(list(scores.values()), dtype=numpy.float64)
    if values.ndim != 2 or not values.shape[1]:
        raise ValueError("no problems to resample: give each metric one value a problem")
    num_problems = values.shape[1]
    rng = numpy.random.default_rng(seed)
    means = []
    for size in _chunk_sizes(num_resamples, num_problems):
        counts = rng.multinomial(num_problems, numpy.full(num_problems, 1 / num_problems), size=size)
        means.append(counts @ values.T / num_problems)
    low, high = numpy.quantile(numpy.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(scores, low, high, strict=True)}


def sign_flip_test(differences: Sequence[float], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of a paired permutation test: how often random signs give a mean at least as far from 0.

    Under the null hypothesis that two runs are exchangeable on every problem, each difference is as likely with either
    sign. Exact up to `MAX_EXACT_FLIPS` problems that differ, else sampled, then never below 1 / (num_resamples + 1).
    """
    moved = numpy.array([value for value in differences if value != 0], dtype=numpy.float64)
    if not len(moved):
        return 1.0
    observed = abs(moved.sum()) * (1 - 1e-12)  # equal sums must not differ by rounding
    if len(moved) <= MAX_EXACT_FLIPS:
        bits = numpy.arange(2 ** len(moved))[:, None] >> numpy.arange(len(moved)) & 1
        return float((abs((1 - 2 * bits) @ moved) >= observed).mean())
    rng = numpy.random.default_rng(seed)
    num_far = 0
    for size in _chunk_sizes(num_resamples, len(moved)):
        signs = 1 - 2 * rng.integers(0, 2, size=(size, len(moved)), dtype=numpy.int8)
        num_far += int((abs(signs @ moved) >= observed).sum())
    return (num_far + 1) / (num_resamples + 1)


def mcnemar_test(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided McNemar test of two yes/no outcomes per problem: a binomial test of those that differ."""
    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    total, fewer = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(total, i) for i in range(fewer + 1)) / 2**total)


def _chunk_sizes(num_resamples: int, width: int) -> list[int]:
    largest = max(1, _CHUNK // width)
    return [min(largest, num_resamples - start) for start in range(0, num_resamples, largest)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
