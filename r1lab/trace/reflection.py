"""Reflection in completions: words that announce a second look, and whether the second look paid.

Words. Published counts use fixed lists of words: DeepSeek-R1 (arXiv 2501.12948) follows "wait" over training; Liu et
al., "Understanding R1-Zero-Like Training" (arXiv 2503.20783) and their pilot study "There May Not be Aha Moment in
R1-Zero-like Training" detect self-reflection by keywords. The list here is ours, in that spirit. Words that
mostly occur outside reflection (but, check, error, wrong, verify, evaluate) are left out: a completion that checks its
only try does not count as reflecting.

Search traces. In the number-search tasks a try is a chain of equalities followed by its check, the distance to the
target: `( 3 + 5 ) * 7 = 8 * 7 = 56 off 32`, and `off 0` is a hit. The check is the policy's own statement.

A count of keywords says how often the policy reconsiders, not that reconsidering helps: it reflects where the first
try failed, so reflecting completions are right less often. Hence the conditional numbers of `reflection_metrics`.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

_GAP = r"[\s-]{1,3}"
REFLECTION_PATTERNS: dict[str, str] = {
    "wait": r"wait",
    "hold on": rf"hold{_GAP}on",
    "hmm": r"hm{1,9}",
    "aha": r"aha",
    "recheck": r"re-?check(?:ed|ing)?",
    "double-check": rf"double{_GAP}check(?:ed|ing)?",
    "check again": rf"check(?:ing)?{_GAP}again",
    "let me check": rf"let{_GAP}me{_GAP}(?:re-?)?check",
    "let me verify": rf"let{_GAP}me{_GAP}(?:re-?)?verify",
    "verify again": rf"verify(?:ing)?{_GAP}again",
    "think again": rf"think{_GAP}again",
    "try again": rf"t(?:ry|rying){_GAP}again",
    "retry": r"re-?try(?:ing)?",
    "rethink": r"re-?think(?:ing)?",
    "reconsider": r"re-?consider(?:ed|ing)?",
    "re-examine": r"re-?examin(?:e|ed|ing)",
    "re-evaluate": r"re-?evaluat(?:e|ed|ing|ion)",
    "mistake": r"mistake[ns]?",
    "however": r"however",
    "alternatively": r"alternatively",
}
"""Keyword as reported -> regular expression, matched in the lower-cased text on whole words. Each begins with
a literal letter."""


def _compile_search(patterns: list[str]) -> re.Pattern:
    # Lower case and a literal letter first in every branch (the word boundary is looked up behind it): the scanner
    # then skips from candidate letter to candidate letter, several times faster than trying every position.
    # Longer phrases first, so that "let me check again" is one reflection and the same one every time.
    branches = [rf"{one[0]}(?<=\b{one[0]})(?:{one[1:]})" for one in sorted(patterns, key=len, reverse=True)]
    return re.compile("(?:" + "|".join(branches) + r")\b")


_REFLECTION = _compile_search(list(REFLECTION_PATTERNS.values()))
_KEYWORD_PATTERNS = {keyword: re.compile(pattern) for keyword, pattern in REFLECTION_PATTERNS.items()}


class Reflection(NamedTuple):
    """A reflective word in a text: `text[start:end]`."""

    keyword: str
    """A key of `REFLECTION_PATTERNS`."""
    start: int
    end: int


class Attempt(NamedTuple):
    """One try of a search trace, with its check."""

    expression: str
    """Left of the first `=`, as written."""
    value: int | float
    """Right of the last `=`: what the policy says the expression is worth."""
    off: int | float
    """Distance to the target by the policy's own check; 0: it calls the try a hit."""
    reconsidered: bool
    """A reflective word follows before the next attempt (or the end of the text)."""
    start: int
    """Of the chain, in characters."""
    end: int
    """Behind the check."""


class AhaEvent(NamedTuple):
    """A change of mind that decided the outcome."""

    kind: Literal["aha", "inverse"]
    """"aha": wrong first try, reconsidered, right in the end. "inverse": a hit, reconsidered, wrong in the end."""
    attempt: Attempt
    """The try that was reconsidered."""
    reflection: Reflection
    """The first reflective word after it."""


def find_reflections(text: str) -> list[Reflection]:
    """The reflective words of a text, left to right, not overlapping. Time is linear in the text."""
    return [
        Reflection(_keyword(match.group()), match.start(), match.end()) for match in _REFLECTION.finditer(_lower(text))
    ]


@lru_cache(maxsize=4096)
def _keyword(found: str) -> str:
    return next(keyword for keyword, pattern in _KEYWORD_PATTERNS.items() if pattern.fullmatch(found))


def _lower(text: str) -> str:
    """`text.lower()` with every character in its place."""
    lowered = text.lower()
    # A few characters grow when lowered (the dotted capital I); the spans would shift.
    return lowered if len(lowered) == len(text) else "".join(char.lower()[0] for char in text)


# -------------------------------------------------------------------------------------------------- search attempts

_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
# Either a check, or a maximal run of arithmetic on one line: maximal, so the scan never goes back over it.
# Both begin in one set of characters, which the scanner searches fast.
_CHECK_OR_RUN = re.compile(
    r"[o0-9(](?:"
    rf"(?<=\bo)ff[ \t]{{0,3}}:?[ \t]{{0,3}}(?P<off>-?{_NUMBER})(?![0-9.]*[0-9])"
    r"|(?<=[0-9(])[0-9()+\-*/=.×÷− \t]*)"
)
# Two numbers side by side: a new expression begins (`3 5 7 3 + 5 = 8` lists the numbers, then tries).
_NEW_EXPRESSION = re.compile(r"(?<=[0-9)])[ \t]+(?=[0-9(])")
_OPERATION = re.compile(r"[0-9)][ \t]*[+\-*/×÷−]")
_VALUE = re.compile(rf"[-−]?[ \t]?{_NUMBER}")


def parse_attempts(text: str) -> list[Attempt]:
    """The tries of a search trace, in order.

    A chain without its check is a working step, and a check without a chain is noise: neither is an attempt. Text
    that is no search trace has no attempts; nothing raises.
    """
    found: list[tuple[str, int | float, int | float, int, int]] = []
    chain: tuple[str, int | float, int] | None = None
    for match in _CHECK_OR_RUN.finditer(_lower(text)):
        if match["off"] is None:
            chain = _last_chain(match.group(), match.start()) or chain
        elif chain is not None:
            found.append((chain[0], chain[1], abs(_number(match["off"])), chain[2], match.end()))
            chain = None
    if not found:
        return []
    reflections = [reflection.start for reflection in find_reflections(text)]
    attempts = []
    for index, (expression, value, off, start, end) in enumerate(found):
        limit = found[index + 1][3] if index + 1 < len(found) else len(text)
        reconsidered = bisect_left(reflections, end) < bisect_left(reflections, limit)
        attempts.append(Attempt(expression, value, off, reconsidered, start, end))
    return attempts


def _last_chain(run: str, offset: int) -> tuple[str, int | float, int] | None:
    """The last `expression = ... = value` in a run of arithmetic: (expression, value, start in the text)."""
    if "=" not in run:
        return None
    starts = [0, *(match.end() for match in _NEW_EXPRESSION.finditer(run))]
    for start, end in zip(reversed(starts), [len(run), *reversed(starts[1:])], strict=True):
        parts = run[start:end].split("=")
        value = parts[-1].strip(" \t.")
        if len(parts) > 1 and _VALUE.fullmatch(value) and _OPERATION.search(parts[0]):
            return parts[0].strip(), _number(value), offset + start
    return None


def _number(digits: str) -> int | float:
    digits = digits.replace("−", "-").replace(" ", "").replace("\t", "")
    return float(digits) if "." in digits else int(digits)


# ------------------------------------------------------------------------------------------------------ aha moments


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


def reflection_metrics(texts: Sequence[str], is_correct: Sequence[bool]) -> dict[str, float]:
    """Reflection over a batch of completions, keyed for the metrics file.

    Returns (shares of all completions unless said otherwise; {} for an empty batch):
        reflection/rate: with at least one reflective word
        reflection/keyword/<keyword>: with that word (only words that occur)
        reflection/aha_rate: first try wrong, reconsidered, final answer right
        reflection/inverse_rate: a hit was reconsidered, final answer wrong
        reflection/p_correct_wrong_first_reconsidered, ..._not_reconsidered: share of right final answers among the
            completions whose first try is wrong and is / is not followed by a reflective word; NaN if there is none
        reflection/num_wrong_first_reconsidered, ..._not_reconsidered: how many these are
        reflection/mean_attempts: tries a completion

    Raises:
        ValueError: the lengths differ.
    """
    if len(texts) != len(is_correct):
        raise ValueError(f"{len(texts)} texts but {len(is_correct)} is_correct flags: give one flag for each text")
    if not len(texts):
        return {}
    total = len(texts)
    keywords = [{reflection.keyword for reflection in find_reflections(text)} for text in texts]
    attempts = [parse_attempts(text) for text in texts]
    counts = Counter(keyword for found in keywords for keyword in found)
    # Outcomes of the completions whose first try is wrong, by whether they reconsidered it.
    outcomes: dict[bool, list[bool]] = {True: [], False: []}
    num_inverse = 0
    for tries, right in zip(attempts, is_correct, strict=True):
        if tries and tries[0].off != 0:
            outcomes[tries[0].reconsidered].append(bool(right))
        num_inverse += not right and any(attempt.off == 0 and attempt.reconsidered for attempt in tries)
    metrics = {
        "reflection/rate": sum(map(bool, keywords)) / total,
        "reflection/aha_rate": sum(outcomes[True]) / total,
        "reflection/inverse_rate": num_inverse / total,
        "reflection/mean_attempts": sum(map(len, attempts)) / total,
    }
    for reconsidered, name in ((True, "wrong_first_reconsidered"), (False, "wrong_first_not_reconsidered")):
        rights = outcomes[reconsidered]
        metrics[f"reflection/p_correct_{name}"] = sum(rights) / len(rights) if rights else float("nan")
        metrics[f"reflection/num_{name}"] = float(len(rights))
    metrics.update({f"reflection/keyword/{keyword}": count / total for keyword, count in sorted(counts.items())})
    return metrics
