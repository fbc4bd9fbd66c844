"""Words that announce a second look.

Published counts use fixed lists of words: DeepSeek-R1 (arXiv 2501.12948) follows "wait" over training; Liu et al.,
"Understanding R1-Zero-Like Training" (arXiv 2503.20783) and their pilot study "There May Not be Aha Moment in
R1-Zero-like Training" detect self-reflection by keywords. The list here is ours, in that spirit. Words that
mostly occur outside reflection (but, check, error, wrong, verify, evaluate) are left out: a completion that checks its
only try does not count as reflecting.
"""

import re
from functools import lru_cache
from typing import NamedTuple

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


def find_reflections(text: str) -> list[Reflection]:
    """The reflective words of a text, left to right, not overlapping. Time is linear in the text."""
    return [
        Reflection(_keyword(match.group()), match.start(), match.end()) for match in _REFLECTION.finditer(lower(text))
    ]


@lru_cache(maxsize=4096)
def _keyword(found: str) -> str:
    return next(keyword for keyword, pattern in _KEYWORD_PATTERNS.items() if pattern.fullmatch(found))


def lower(text: str) -> str:
    """`text.lower()` with every character in its place."""
    lowered = text.lower()
    # A few characters grow when lowered (the dotted capital I); the spans would shift.
    return lowered if len(lowered) == len(text) else "".join(char.lower()[0] for char in text)
