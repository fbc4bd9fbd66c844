"""TRL calls our functions as they are; this is for running slow ones beside each other."""

import asyncio
from typing import Any

from rewards.registry import RewardFunction, load_reward, reward_name


class AsyncReward:
    """A reward function as a coroutine: TRL's GRPOTrainer awaits all such functions of a step together.

    The function runs in a thread of its own, so that others proceed while it waits for its worker processes.
    Pickles when the function does; keeps its `__name__`.
    """

    def __init__(self, function: RewardFunction):
        self.function = function
        self.__name__ = reward_name(function)

    async def __call__(self, *args: Any, **columns: Any) -> list[float | None]:
        return await asyncio.to_thread(self.function, *args, **columns)


def async_reward(reward: RewardFunction | str, **options: Any) -> AsyncReward:
    """The async variant of a function, or of a name or dotted path with options, as `load_reward` takes them."""
    if isinstance(reward, str):
        reward = load_reward(reward, **options)
    elif options:
        raise TypeError(f"options {', '.join(options)} go with a name; fix those of a function by functools.partial")
    return AsyncReward(reward)
