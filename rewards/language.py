"""Is the reasoning written in one language?"""

import re
from collections.abc import Sequence
from typing import Any

from rewards.text import check_length, completion_text, thinking_section

_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_KANA = r"\u3040-\u30ff"
_WORDS = {
    "latin": "[A-Za-z\u00c0-\u024f]{2,}",
    "han": f"[{_HAN}]",
    "kana": f"[{_KANA}]",
    "hangul": "[\uac00-\ud7a3]+",
    "cyrillic": "[\u0400-\u04ff]{2,}",
    "greek": "[\u0370-\u03ff]{2,}",
    "arabic": "[\u0600-\u06ff]+",
    "hebrew": "[\u0590-\u05ff]+",
    "devanagari": "[\u0900-\u097f]+",
    "thai": "[\u0e00-\u0e7f]+",
}
"""A word of each script. One Latin, Greek or Cyrillic letter is a variable, not a word."""

_WORD = re.compile("|".join(f"(?P<{script}>{pattern})" for script, pattern in _WORDS.items()))
_COMMAND = re.compile(r"\\[A-Za-z]+")

LANGUAGES: dict[str, frozenset[str]] = {
    "en": frozenset({"latin"}),
    "zh": frozenset({"han"}),
    "ja": frozenset({"han", "kana"}),
    "ko": frozenset({"hangul"}),
    "ru": frozenset({"cyrillic"}),
    "el": frozenset({"greek"}),
    "ar": frozenset({"arabic"}),
    "he": frozenset({"hebrew"}),
    "hi": frozenset({"devanagari"}),
    "th": frozenset({"thai"}),
}
"""Scripts of each language. Languages that share one, such as English and French, are not told apart."""


def language_consistency_reward(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] = (),
    completion_ids: Sequence[Any] | None = None,
    *,
    language: str | Sequence[str | None] = "en",
    target_language: str | Sequence[str | None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """The share of the reasoning's words that belong to the target language, in [0, 1].

    language: a key of `LANGUAGES`, one for all or a column; a row with None gets None. target_language takes its place
    in data sets whose column `language` is the programming language. The reasoning is the think block, or the whole
    completion without one; reasoning without words gets 0.0, so that saying nothing earns nothing.

    Source: DeepSeek-R1 (arXiv:2501.12948), section 2.3.2. Raises ValueError for an unknown language.
    """
    size = len(completions)
    wanted = language if target_language is None else target_language
    targets = [wanted] * size if isinstance(wanted, str) else check_length("language", wanted, size)
    for target in targets:
        if target is not None and target not in LANGUAGES:
            raise ValueError(f"language={target!r} is unknown; pass target_language, one of {', '.join(LANGUAGES)}")
    texts = [thinking_section(completion_text(completion)) for completion in completions]
    return [
        None if target is None else language_share(text, target) for text, target in zip(texts, targets, strict=True)
    ]


def language_share(text: str, language: str) -> float:
    """The share of a text's words written in the language's scripts; 0.0 without words.

    Words are told by script: a run of letters, or one character where a script separates no words (Chinese,
    Japanese). Digits, signs, LaTeX commands and single letters belong to no language.
    """
    scripts = [match.lastgroup for match in _WORD.finditer(_COMMAND.sub(" ", text))]
    if not scripts:
        return 0.0
    return sum(script in LANGUAGES[language] for script in scripts) / len(scripts)
