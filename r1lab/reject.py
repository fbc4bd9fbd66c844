"""Rejection sampling: which of a policy's own completions are worth learning from.

DeepSeek-R1, section 2.3.3: several completions of each prompt, of which only right and readable ones are kept; mixed
languages, long paragraphs and code blocks are filtered out. Each filter is one line of `FILTERS`, tried in that
order; a completion counts for the first that refuses it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from r1lab.config import at_least
from r1lab.evaluate import Judged, RewardFunction, judge_completions
from r1lab.types import Completion, Prompt
from rewards.language import LANGUAGES, language_share
from rewards.repetition import repeated_share
from rewards.text import thinking_section

KEPT = "kept"


@dataclass
class RejectConfig:
    """How completions are sampled and which are kept.

    Raises:
        ValueError: a value is out of range; the message names it and the fix.
    """

    reject_num_problems: int = field(default=2048, metadata={"help": "Training problems to sample on."})
    reject_num_samples: int = field(default=4, metadata={"help": "Completions a problem."})
    reject_temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    reject_top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling."})
    reject_language: str = field(default="en", metadata={"help": "The language of the reasoning."})
    reject_min_language_share: float = field(default=1.0, metadata={"help": "Least share of words in that language."})
    reject_ngram_size: int = field(default=20, metadata={"help": "Words of the n-grams that may not repeat."})
    reject_max_repeated_share: float = field(default=0.1, metadata={"help": "Largest share of repeated n-grams."})
    reject_max_paragraph: int = field(default=3000, metadata={"help": "Longest paragraph, in characters."})
    reject_keep_per_problem: int = field(default=1, metadata={"help": "Keep at most so many of one problem."})

    def __post_init__(self) -> None:
        for name in ("reject_num_problems", "reject_num_samples", "reject_ngram_size", "reject_max_paragraph",
                     "reject_keep_per_problem"):  # fmt: skip
            at_least(self, name, 1)
        if self.reject_language not in LANGUAGES:
            raise ValueError(f"reject_language={self.reject_language!r}: use one of {', '.join(LANGUAGES)}")
        for name in ("reject_min_language_share", "reject_max_repeated_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: a share is between 0 and 1")


def _repeats_itself(judged: Judged, config: RejectConfig) -> bool:
    return repeated_share(judged.text.lower().split(), config.reject_ngram_size) > config.reject_max_repeated_share


def _is_mixed(judged: Judged, config: RejectConfig) -> bool:
    share = language_share(thinking_section(judged.text), config.reject_language)
    return share < config.reject_min_language_share


def _has_long_paragraph(judged: Judged, config: RejectConfig) -> bool:
    return any(len(paragraph) > config.reject_max_paragraph for paragraph in judged.text.split("\n\n"))


FILTERS: dict[str, Callable[[Judged, RejectConfig], bool]] = {
    "cut at the length limit": lambda judged, config: judged.is_truncated,
    "wrong": lambda judged, config: not judged.is_correct,
    "malformed": lambda judged, config: not judged.is_well_formed,
    "mixed languages, or no words": _is_mixed,
    "code block in the reasoning": lambda judged, config: "```" in thinking_section(judged.text),
    "long paragraph": _has_long_paragraph,
    "repeats itself": _repeats_itself,
}
"""What a completion is refused for -> whether it is."""
DUPLICATE, SURPLUS = "said before", "enough of this problem"


@dataclass(slots=True)
class Sample:
    """A completion and what became of it."""

    prompt: Prompt
    text: str
    num_tokens: int
    verdict: str
    """`KEPT`, or what it was refused for."""


def reject(
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    decode: Callable[[list[int]], str],
    reward: RewardFunction,
    config: RejectConfig,
) -> list[Sample]:
    """Judges every completion of every prompt, in order.

    Args:
        completions: one list a prompt.
        decode: completion tokens -> text without special tokens.
        reward: the strict reward; 1 is right.
    """
    samples = []
    for prompt, group in zip(prompts, judge_completions(prompts, completions, decode, reward), strict=True):
        kept: list[str] = []
        for judged in group:
            verdict = _judge(judged, kept, config)
            if verdict == KEPT:
                kept.append(judged.text)
            samples.append(Sample(prompt, judged.text, judged.num_tokens, verdict))
    return samples


def _judge(judged: Judged, kept: Sequence[str], config: RejectConfig) -> str:
    for reason, refuses in FILTERS.items():
        if refuses(judged, config):
            return reason
    if judged.text in kept:
        return DUPLICATE
    return SURPLUS if len(kept) >= config.reject_keep_per_problem else KEPT


def count_verdicts(samples: Sequence[Sample]) -> dict[str, int]:
    """How many were sampled, refused by each filter (in their order, zeros included) and kept."""
    counts = Counter(sample.verdict for sample in samples)
    return {"sampled": len(samples)} | {name: counts[name] for name in (*FILTERS, DUPLICATE, SURPLUS, KEPT)}


def rows_of(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One row a sample, for a file: `prompt`, `completion`, the problem's columns, `num_tokens`, `verdict`."""
    return [
        {
            "prompt": sample.prompt.text,
            "completion": sample.text.strip(),
            **sample.prompt.columns,
            "num_tokens": sample.num_tokens,
            "verdict": sample.verdict,
        }
        for sample in samples
    ]
