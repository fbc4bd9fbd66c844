"""Completions -> rewards: calling reward functions by TRL's contract."""

import math
from collections.abc import Callable, Sequence

from r1lab.types import Rollout, RolloutGroup
from rewards.registry import reward_name

RewardFunction = Callable[..., list[float | None]]


class RewardError(RuntimeError):
    """A reward function raised, or returned something that is not one number or None per completion."""


def score_groups(
    groups: Sequence[RolloutGroup], reward_funcs: Sequence[RewardFunction], weights: Sequence[float]
) -> None:
    """Fills in `rewards`, `reward` and `extras` of every rollout.

    Each function is called once for all rollouts, by keyword: `prompts`, `completions`, `completion_ids` and every
    other dataset column as a list with one entry per completion (TRL 1.16's contract). Where a prompt is chat messages
    its completions are too. `log_extra(column, values)` keeps one value a completion in `extras`. `reward` is the
    weighted sum of what is not None; NaN when everything is None.

    Raises:
        RewardError: a function raised, returned a wrong number of values, or a value that is not finite.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    arguments = _arguments(groups)
    for function in reward_funcs:
        name = reward_name(function)
        extras: dict[str, list] = {}
        values = _call(function, name, {**arguments, "log_extra": extras.__setitem__}, len(rollouts))
        for rollout, value in zip(rollouts, values, strict=True):
            rollout.rewards[name] = value
        _keep_extras(rollouts, extras, name)
    names = [reward_name(function) for function in reward_funcs]
    for rollout in rollouts:
        rollout.reward = _weighted_sum(rollout, names, weights)


def _arguments(groups: Sequence[RolloutGroup]) -> dict[str, list]:
    prompts, completions, completion_ids = [], [], []
    for group in groups:
        is_chat = not isinstance(group.prompt.text, str)
        for rollout in group.rollouts:
            prompts.append(group.prompt.text)
            completions.append([{"role": "assistant", "content": rollout.text}] if is_chat else rollout.text)
            completion_ids.append(rollout.completion.token_ids)
    names = dict.fromkeys(name for group in groups for name in group.prompt.columns)
    columns = {name: [group.prompt.columns.get(name) for group in groups for _ in group.rollouts] for name in names}
    return {**columns, "prompts": prompts, "completions": completions, "completion_ids": completion_ids}


def _call(function: RewardFunction, name: str, arguments: dict[str, list], count: int) -> list[float | None]:
    # The boundary to the user's code: whatever it raises becomes one clear line, with the original as its cause.
    try:
        values = function(**arguments)
    except Exception as error:
        raise RewardError(
            f"reward function {name!r} raised {type(error).__name__}: {error}; "
            "return 0.0 or None for a completion that cannot be scored"
        ) from error
    try:
        values = list(values)
    except TypeError as error:
        raise RewardError(
            f"reward function {name!r} returned {type(values).__name__}; return a list of numbers"
        ) from error
    if len(values) != count:
        raise RewardError(
            f"reward function {name!r} returned {len(values)} values for {count} completions; return one each"
        )
    return [_number(value, name) for value in values]


def _keep_extras(rollouts: Sequence[Rollout], extras: dict[str, list], name: str) -> None:
    for column, values in extras.items():
        if len(values) != len(rollouts):
            raise RewardError(
                f"reward function {name!r} logged {len(values)} values of {column!r} for {len(rollouts)} completions; "
                "log one each"
            )
        for rollout, value in zip(rollouts, values, strict=True):
            rollout.extras[column] = value


def _number(value, name: str) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise RewardError(f"reward function {name!r} returned {value!r}; return numbers or None") from error
    if not math.isfinite(number):
        raise RewardError(f"reward function {name!r} returned {number}; return finite numbers, or None to skip")
    return number


def _weighted_sum(rollout: Rollout, names: Sequence[str], weights: Sequence[float]) -> float:
    parts = [
        w * rollout.rewards[name] for name, w in zip(names, weights, strict=True) if rollout.rewards[name] is not None
    ]
    return sum(parts) if parts else math.nan
