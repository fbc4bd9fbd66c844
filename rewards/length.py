"""Is the completion as long as it should be?"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from rewards.accuracy import accuracy_reward
from rewards.text import check_length, completion_text

RewardFunction = Callable[..., list[float | None]]


def cosine_reward(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] = (),
    completion_ids: Sequence[Sequence[Any]] | None = None,
    *,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    max_len: int = 1000,
    correct: RewardFunction = accuracy_reward,
    log_extra: Callable[[str, list], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """A right answer pays more when it is short, a wrong one costs less when it is long; between them half a cosine.

    Right: from max_value_correct at length 0 to min_value_correct at max_len. Wrong: from min_value_wrong to
    max_value_wrong. Longer completions get the value at max_len. Lengths are numbers of token ids; of characters where
    completion_ids are not given. `correct` tells right (1.0 or more) from wrong, and its None is passed on.

    Source: Yeo et al. 2025 (arXiv:2502.03373), section 4.2 and appendix C.1; names as in open-r1.
    Raises ValueError for max_len below 1, and whatever `correct` raises for its columns.
    """
    if max_len < 1:
        raise ValueError(f"max_len={max_len}; pass at least 1")
    verdicts = correct(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
    rewards: list[float | None] = []
    for verdict, length in zip(verdicts, _lengths(completions, completion_ids), strict=True):
        if verdict is None:
            rewards.append(None)
            continue
        # The cosine comes back up after half a period; a length past max_len stays at its foot.
        weight = (1 + math.cos(math.pi * min(length / max_len, 1.0))) / 2
        short, long = (max_value_correct, min_value_correct) if verdict >= 1 else (min_value_wrong, max_value_wrong)
        rewards.append(long + (short - long) * weight)
    return rewards


def length_reward(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] = (),
    completion_ids: Sequence[Sequence[Any]] | None = None,
    *,
    correct: RewardFunction = accuracy_reward,
    log_extra: Callable[[str, list], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Among the completions of one prompt, 0.5 for the shortest to -0.5 for the longest; a wrong one never gains.

    r = 0.5 - (length - shortest) / (longest - shortest), and min(0, r) where the answer is wrong. All get 0.0 when
    the lengths are equal. Completions belong together when their `prompts` are equal; without prompts all are one
    group. Lengths and `correct` as in `cosine_reward`; a None of `correct` is passed on, and that completion's
    length counts for nobody.

    Source: Kimi k1.5 (arXiv:2501.12599), section 2.3.3.
    """
    verdicts = correct(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
    lengths = _lengths(completions, completion_ids)
    rewards: list[float | None] = [None] * len(completions)
    for members in _groups(prompts, len(completions)):
        members = [index for index in members if verdicts[index] is not None]
        shortest = min((lengths[index] for index in members), default=0)
        spread = max((lengths[index] for index in members), default=0) - shortest
        for index in members:
            value = 0.5 - (lengths[index] - shortest) / spread if spread else 0.0
            rewards[index] = value if verdicts[index] >= 1 else min(0.0, value)
    return rewards


def soft_overlong_punishment(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] = (),
    completion_ids: Sequence[Sequence[Any]] | None = None,
    *,
    max_completion_len: int = 16384,
    soft_punish_cache: int = 4096,
    **columns: Any,
) -> list[float | None]:
    """0.0 up to max_completion_len - soft_punish_cache tokens, falling to -1.0 at max_completion_len and beyond.

    Source: DAPO (arXiv:2503.14476), equation 13; defaults and names as in open-r1.
    Raises TypeError without completion_ids, ValueError unless 0 <= soft_punish_cache <= max_completion_len.
    """
    if not 0 <= soft_punish_cache <= max_completion_len:
        raise ValueError(f"{soft_punish_cache=}; pass a number from 0 to max_completion_len={max_completion_len}")
    if completion_ids is None:
        raise TypeError(
            "soft_overlong_punishment counts tokens: pass completion_ids, a list of token ids per completion"
        )
    free = max_completion_len - soft_punish_cache
    return [_overlong(len(ids), free, soft_punish_cache) for ids in completion_ids]


def _overlong(length: int, free: int, cache: int) -> float:
    if length <= free:
        return 0.0
    return max(-1.0, (free - length) / cache) if cache else -1.0


def _lengths(completions: Sequence[Any], completion_ids: Sequence[Sequence[Any]] | None) -> list[int]:
    if completion_ids is None:
        return [len(completion_text(completion)) for completion in completions]
    return [len(ids) for ids in check_length("completion_ids", completion_ids, len(completions))]


def _groups(prompts: Sequence[Any] | None, size: int) -> list[list[int]]:
    """The indices of the completions that share a prompt."""
    if prompts is None:
        return [list(range(size))]
    groups: dict[str, list[int]] = defaultdict(list)
    for index, prompt in enumerate(check_length("prompts", prompts, size)):
        # A prompt may be messages, which do not hash; their images do not serialise.
        groups[prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=repr)].append(index)
    return list(groups.values())
