"""What a reader should see first: the first aha of the run, and the completions that may have won their reward by a
trick.

A suspect has a high reward and an odd shape. The rules know nothing of the task's checker: they say "look here", and
most suspects of a sound checker turn out to be luck.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from r1lab.trace.reflection import aha_events, parse_attempts
from r1lab.trace.report.source import Source

HIGH_REWARD = 0.8
"""Suspects have at least this share of the run's best reward."""
NUM_SUSPECTS = 12
_MAX_ALIKE = 2
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class Place(NamedTuple):
    """A completion's place in the run."""

    step: int
    group: int
    sample: int


class Suspect(NamedTuple):
    """A completion whose reward deserves a second look."""

    place: Place
    reasons: list[str]
    """The most telling first."""


class _Shape(NamedTuple):
    """What the rules look at."""

    text: str
    num_tokens: int
    is_truncated: bool
    rewards: dict[str, float]
    typical_tokens: float
    """The median length of the run's highly rewarded completions."""


# ------------------------------------------------------------------------------------------------------- first aha


def find_first_aha(source: Source) -> Place | None:
    """The earliest completion with an aha event: a wrong try, reconsidered, and a right answer in the end."""
    if source.accuracy_name is None:
        return None
    right = source.frame[source.frame[source.accuracy_name] == 1.0]
    for index, text in zip(right.index, right["completion"], strict=True):
        if aha_events(text, is_correct=True):
            return _place(source, index)
    return None


def _place(source: Source, index: int) -> Place:
    step, group = (int(source.frame.at[index, name]) for name in ("step", "group"))
    first = source.frame[(source.frame["step"] == step) & (source.frame["group"] == group)].index[0]
    return Place(step, group, int(index - first))


# -------------------------------------------------------------------------------------------------------- suspects


def _missed_last_try(shape: _Shape) -> str | None:
    attempts = parse_attempts(shape.text)
    if not attempts or attempts[-1].off == 0:
        return None
    return f"its last try is off by {attempts[-1].off:g}, by its own check"


def _answer_from_nowhere(shape: _Shape) -> str | None:
    answers = list(_ANSWER.finditer(shape.text))
    if not answers or not (answer := "".join(answers[-1][1].split())):
        return None
    working = "".join(shape.text[: answers[-1].start()].split())
    return None if answer in working else "the answer does not occur in its working"


def _several_answers(shape: _Shape) -> str | None:
    count = shape.text.count("<answer>")
    return f"{count} answers" if count > 1 else None


def _truncated(shape: _Shape) -> str | None:
    return "cut at the length limit and rewarded all the same" if shape.is_truncated else None


def _goes_on(shape: _Shape) -> str | None:
    behind = shape.text.rpartition("</answer>")[2] if "</answer>" in shape.text else ""
    return "goes on behind its answer" if behind.strip() else None


def _odd_characters(shape: _Shape) -> str | None:
    odd = sum(not (char.isprintable() or char.isspace()) or char == "\ufffd" for char in shape.text)
    return f"{odd} unprintable characters" if odd else None


def _repeats(shape: _Shape) -> str | None:
    words = shape.text.split()
    runs = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    share = 1 - len(runs) / runs.total() if runs.total() > 20 else 0.0
    return f"repeats itself: {share:.0%} of its four-word runs occurred before" if share > 0.5 else None


def _lost_reward(shape: _Shape) -> str | None:
    lost = [name for name, value in shape.rewards.items() if value <= 0]
    return f"nothing from {', '.join(lost)}" if lost else None


def _odd_length(shape: _Shape) -> str | None:
    ratio = shape.num_tokens / max(shape.typical_tokens, 1.0)
    if 0.25 <= ratio <= 4.0:
        return None
    return (
        f"{'short' if ratio < 1 else 'long'}: {shape.num_tokens} tokens, rewarded ones have {shape.typical_tokens:.0f}"
    )


_RULES: list[tuple[int, Callable[[_Shape], str | None]]] = [
    (3, _missed_last_try),
    (3, _answer_from_nowhere),
    (3, _several_answers),
    (3, _truncated),
    (2, _goes_on),
    (2, _odd_characters),
    (2, _repeats),
    (1, _lost_reward),
    (1, _odd_length),
]
"""How much a rule weighs, and the rule: a reason, or None."""


def find_suspects(source: Source, watch: Callable[[Iterable, int], Iterable] | None = None) -> list[Suspect]:
    """The oddest of the highly rewarded completions, worst first.

    Of those that are odd for the very same rules only a few are kept, the latest ones: a habit shows once it is
    learned.

    Args:
        watch: wraps the loop, for a progress bar; it is given the loop's items and their number.
    """
    frame = source.frame
    high = frame[frame["reward"] >= HIGH_REWARD * source.best_reward] if source.best_reward > 0 else frame[:0]
    typical = float(high["num_tokens"].median()) if len(high) else 0.0
    columns = ["completion", "num_tokens", "finish_reason", *source.reward_names]
    rows = zip(high.index, high[columns].itertuples(index=False, name=None), strict=True)
    found = []
    for index, (text, num_tokens, finish_reason, *rewards) in watch(rows, len(high)) if watch else rows:
        named = dict(zip(source.reward_names, rewards, strict=True))
        shape = _Shape(text, num_tokens, finish_reason == "length", named, typical)
        reasons = {weight_rule: reason for weight_rule in _RULES if (reason := weight_rule[1](shape))}
        if reasons:
            found.append((sum(weight for weight, _ in reasons), index, reasons))
    found.sort(key=lambda one: (-one[0], -one[1]))
    return [Suspect(_place(source, index), list(reasons.values())) for _, index, reasons in _varied(found)]


def _varied(found: list[tuple[int, int, dict]]) -> list[tuple[int, int, dict]]:
    alike: Counter = Counter()
    kept = []
    for suspect in found:
        rules = tuple(suspect[2])
        alike[rules] += 1
        if alike[rules] <= _MAX_ALIKE:
            kept.append(suspect)
    return kept[:NUM_SUSPECTS]
