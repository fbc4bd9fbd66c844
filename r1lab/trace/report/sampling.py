"""Which groups a page of bounded size shows, and the start and end that each is compared with.

Sampling: every step first shows one group, then a second one, and so on, as far as the page's size allows; steps are
taken in an order that spreads over the run, so that however few fit, they cover it from end to end. Groups that hold
the first aha or a suspect come first of all.
"""

from collections.abc import Sequence

GroupKey = tuple[int, int]
"""(step, group)"""
EDGE_STEPS = 3
"""So many first and last steps are searched for a group with a similar prompt."""


def spread(count: int) -> list[int]:
    """0 ... count - 1, the two ends first, then the middles of what is left: every beginning of the list covers the
    whole range evenly."""
    order = [0, count - 1][:count]
    intervals = [(0, count - 1)]
    for low, high in intervals:
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            intervals += [(low, middle), (middle, high)]
    return order


def order_groups(keys: Sequence[GroupKey], pinned: Sequence[GroupKey]) -> list[GroupKey]:
    """All groups, those to show first in front: the pinned ones, then round after round over the steps."""
    by_step: dict[int, list[GroupKey]] = {}
    for key in sorted(keys):
        by_step.setdefault(key[0], []).append(key)
    steps = [by_step[step] for step in sorted(by_step)]
    rounds = max(map(len, steps), default=0)
    spread_steps = [steps[index] for index in spread(len(steps))]
    turns = [groups[turn] for turn in range(rounds) for groups in spread_steps if turn < len(groups)]
    return list(dict.fromkeys([*pinned, *turns]))


def find_neighbours(groups: Sequence[dict]) -> list[dict[str, int]]:
    """For each group its counterpart at the start and at the end of the run.

    Args:
        groups: the page's groups, by step.

    Returns:
        {"first": index, "last": index} for each: the same prompt's earliest and latest group where the prompt was
        sampled more than once, else the group of the first (last) steps whose prompt shares most words with it.
    """
    steps = sorted({group["step"] for group in groups})
    words = [_words(group["prompt"]) for group in groups]
    same: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        same.setdefault(group["prompt"], []).append(index)
    starts = [index for index, group in enumerate(groups) if group["step"] in steps[:EDGE_STEPS]]
    ends = [index for index, group in enumerate(groups) if group["step"] in steps[-EDGE_STEPS:]]
    neighbours = []
    for index, group in enumerate(groups):
        occurrences = same[group["prompt"]]
        first = occurrences[0] if occurrences[0] != index else _most_similar(index, starts, words)
        last = occurrences[-1] if occurrences[-1] != index else _most_similar(index, ends, words)
        neighbours.append({"first": first, "last": last})
    return neighbours


def _words(text: str) -> frozenset[tuple[str, int]]:
    """The words, a repeated one counted: ("7", 0), ("7", 1)."""
    seen: dict[str, int] = {}
    numbered = []
    for word in text.split():
        seen[word] = seen.get(word, -1) + 1
        numbered.append((word, seen[word]))
    return frozenset(numbered)


def _most_similar(index: int, candidates: list[int], words: list[frozenset]) -> int:
    own = words[index]
    if index in candidates:
        return index
    # Shared words out of all words (Dice); the first of equals.
    return max(candidates, key=lambda other: len(own & words[other]) / (len(own) + len(words[other]) or 1))
