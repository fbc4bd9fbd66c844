"""Does the completion repeat itself?"""

import re
from collections.abc import Hashable, Sequence
from typing import Any

from rewards.text import check_length, completion_text

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\s\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")
"""A character of Chinese or Japanese, which separate no words; elsewhere what stands between spaces."""


def repetition_penalty_reward(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] = (),
    completion_ids: Sequence[Sequence[Hashable]] | None = None,
    *,
    ngram_size: int = 3,
    max_penalty: float = -1.0,
    **columns: Any,
) -> list[float | None]:
    """max_penalty times the share of n-grams that are repetitions: 1 - different / all. In (max_penalty, 0].

    Counted over token ids; over lower-cased words where completion_ids are not given. A completion with fewer than
    ngram_size of them gets 0.0. Source: Yeo et al. 2025 (arXiv:2502.03373), appendix C.2.

    Raises ValueError for a positive max_penalty or an ngram_size below 1.
    """
    if max_penalty > 0:
        raise ValueError(f"max_penalty={max_penalty}; pass zero or a negative number")
    if ngram_size < 1:
        raise ValueError(f"ngram_size={ngram_size}; pass at least 1")
    if completion_ids is None:
        tokens = [_WORD.findall(completion_text(completion).lower()) for completion in completions]
    else:
        tokens = check_length("completion_ids", completion_ids, len(completions) or len(completion_ids))
    return [max_penalty * repeated_share(sequence, ngram_size) + 0.0 for sequence in tokens]


def repeated_share(tokens: Sequence[Hashable], ngram_size: int) -> float:
    """The share, in [0, 1), of the n-grams that occurred before. 0.0 when there is none."""
    total = len(tokens) - ngram_size + 1
    if total < 1:
        return 0.0
    ngrams = zip(*(tokens[start : start + total] for start in range(ngram_size)), strict=True)
    return 1 - len(set(ngrams)) / total
